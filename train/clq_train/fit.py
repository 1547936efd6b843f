"""The training loop."""

import csv
import logging
import math
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from clq_train.checkpoint import list_checkpoints, load_state, save_checkpoint
from clq_train.clq import Objects
from clq_train.coco import Record, load_split
from clq_train.config import BackboneConfig, Config, ScheduleConfig
from clq_train.detector import ClqDetector
from clq_train.device import open_device
from clq_train.errors import CheckpointError, ConfigError, TrainingError
from clq_train.init_weights import load_init
from clq_train.samples import Batch, SampleStream, collate

log = logging.getLogger(__name__)

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def fit(config: Config, run: Path, resume: bool = False, progress: bool = True) -> Path:
    """Trains on the split `train` and returns the folder of the last checkpoint.

    config    of the run; saved in every checkpoint
    run       folder of the run; must be empty unless `resume`, which goes on from its last
              checkpoint
    progress  a progress bar on stderr with the losses, the learning rate and the time left

    Raises DataError for broken annotations before the first step, TrainingError for a non-finite
    loss.
    """
    existing = list_checkpoints(run)
    if existing and not resume:
        raise ConfigError(f"{run}: holds checkpoints already; give --resume or another --out")
    records = load_split(config.data, "train")
    run.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, resumed=bool(existing))
    start = trainer.restore(load_state(existing[-1])) if existing else 0
    steps = config.schedule.steps
    last = existing[-1] if existing else run
    bar = tqdm(total=steps, initial=start, disable=not progress, unit="step", dynamic_ncols=True)
    with bar, MetricsFile(run / "metrics.csv", start) as metrics:
        for step, batch in enumerate(batches(records, config, start), start + 1):
            values = trainer.step(batch, step)
            metrics.write(step, values)
            bar.set_postfix_str(" ".join(f"{k} {v:.3g}" for k, v in values.items()), refresh=False)
            bar.update()
            if step % config.run.checkpoint_every == 0 or step == steps:
                last = save_checkpoint(run, step, trainer.weights(), trainer.state(step), config)
    return last


def batches(records: list[Record], config: Config, start: int) -> Iterator[Batch]:
    """The batches of steps start + 1 .. schedule.steps."""
    stream = SampleStream(records, config)
    first = start * config.schedule.batch
    loader = DataLoader(
        Subset(stream, range(first, len(stream))),
        batch_size=config.schedule.batch,
        num_workers=config.run.workers,
        collate_fn=partial(
            collate, multiple=config.model.strides[-1], pad_value=config.input.pad_value
        ),
        # Workers inherit the parent's threads setting; one each keeps them out of the model's way.
        worker_init_fn=_one_thread,
    )
    return iter(loader)


class Trainer:
    """The model, its optimiser and its moving average; one call of `step` a batch."""

    def __init__(self, config: Config, resumed: bool = False) -> None:
        torch.manual_seed(config.run.seed)
        self.config, self.schedule = config, config.schedule
        self.device = open_device(config.run.device)
        model = ClqDetector(config.model, len(config.data.classes))
        load_backbone(model, config.model.backbone)
        load_init(model, None if resumed else config.init)
        # Channels last: 10 % faster on the CPU in bfloat16, the tensor cores' own layout on a GPU.
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.model, self.schedule)
        # On the CPU the scaler is a pass-through; float16 gradients on a GPU need it.
        scaled = config.run.autocast == "float16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.average = Average(self.model, self.schedule.ema) if self.schedule.ema else None

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """One update from a batch; returns the losses by name, and the learning rate."""
        rate = learning_rate(self.schedule, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = batch.images.to(self.device)
        objects = [
            Objects(o.boxes.to(self.device), o.labels.to(self.device)) for o in batch.objects
        ]
        dtype = AUTOCAST.get(self.config.run.autocast)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            losses = self.model.losses(images, objects)
        total = sum(value for name, value in losses.items() if name != "positives")
        values = {name: value.item() for name, value in losses.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise TrainingError(f"step {step}: the loss is not finite: {values}, lr {rate:g}")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        if self.schedule.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.schedule.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model, step)
        return {**values, "lr": rate}

    def weights(self) -> dict[str, Tensor]:
        """What to evaluate: the moving average if there is one, on the CPU."""
        source = self.model.state_dict() if self.average is None else self.average.weights
        return {name: value.detach().cpu() for name, value in source.items()}

    def state(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.weights,
        }

    def restore(self, state: dict[str, Any]) -> int:
        """Takes up a saved state and returns its step."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the configuration does not fit the run: {error}") from error
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None and state["average"] is not None:
            self.average.weights = {k: v.to(self.device) for k, v in state["average"].items()}
        return int(state["step"])


class Average:
    """Exponential moving average of weights and batch statistics.

    The decay ramps up, (1 + step) / (10 + step) at most: a fixed one would hold the random start
    for thousands of steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - keep)
            else:
                self.weights[name].copy_(value)


class MetricsFile:
    """metrics.csv of a run: one row a step. On resuming, the rows after `start` are dropped."""

    def __init__(self, path: Path, start: int) -> None:
        # A run that was killed before its first row leaves an empty file, without a header.
        self._empty = not path.exists() or path.stat().st_size == 0
        if not self._empty:
            with path.open(newline="") as old:
                header, *rows = csv.reader(old)
            beside = path.with_suffix(".tmp")
            with beside.open("w", newline="") as new:
                whole = (row for row in rows if len(row) == len(header))  # a kill can cut the last
                csv.writer(new).writerows([header, *(r for r in whole if int(r[0]) <= start)])
            os.replace(beside, path)
        self._file = path.open("a", newline="")
        self._writer, self._began = csv.writer(self._file), time.monotonic()

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._empty:
            self._writer.writerow(["step", "seconds", *values])
            self._empty = False
        seconds = time.monotonic() - self._began
        self._writer.writerow([step, f"{seconds:.1f}", *(f"{v:.6g}" for v in values.values())])
        self._file.flush()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def learning_rate(schedule: ScheduleConfig, step: int) -> float:
    """Learning rate of step 1 .. steps: linear warm-up from lr / 1000, then cosine or drops."""
    if step <= schedule.warmup_steps:
        return schedule.lr * (0.001 + 0.999 * step / schedule.warmup_steps)
    if schedule.decay == "step":
        drops = sum(step > share * schedule.steps for share in schedule.drops)
        return schedule.lr * 0.1**drops
    done = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return schedule.lr * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def build_optimizer(model: nn.Module, schedule: ScheduleConfig) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, or AdamW; no weight decay on biases, norms and scales under AdamW."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(
            trainable, schedule.lr, momentum=0.9, weight_decay=schedule.weight_decay
        )
    groups = [
        {
            "params": [p for p in trainable if p.dim() > 1],
            "weight_decay": schedule.weight_decay,
        },
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, schedule.lr)


def load_backbone(model: ClqDetector, config: BackboneConfig) -> None:
    """Reads torchvision's ImageNet weights into the backbone, if the configuration names a file.

    Only tensors are read (safetensors, or torch.load with weights_only). Raises CheckpointError
    for a tensor that is missing or of another shape; the classifier's are left out.
    """
    if config.weights is None:
        return
    try:
        if config.weights.suffix == ".safetensors":
            weights = load_file(config.weights)
        else:
            weights = torch.load(config.weights, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{config.weights}: {error.strerror}") from error
    names = {"conv1": "stages.0.0", "bn1": "stages.0.1"}
    names |= {f"layer{i}": f"stages.{i}" for i in range(1, 5)}
    renamed = {}
    for name, value in weights.items():
        top, _, rest = name.partition(".")
        if top in names:
            renamed[f"{names[top]}.{rest}"] = value
    own = set(model.backbone.state_dict())
    missing = {n for n in own - set(renamed) if not n.endswith("num_batches_tracked")}
    if missing:
        raise CheckpointError(f"{config.weights}: no tensor for {sorted(missing)[:5]} and others")
    try:
        model.backbone.load_state_dict({k: v for k, v in renamed.items() if k in own}, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{config.weights}: {error}") from error


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
