"""One step of training: the model, its optimiser and its moving average."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clq_train.average import Average
from clq_train.clq import Assigned, Objects
from clq_train.config import Config, ScheduleConfig
from clq_train.detector import ClqDetector
from clq_train.device import autocast, check_precision, keep_freed_memory, open_own_device
from clq_train.errors import CheckpointError, ConfigError, TrainingError
from clq_train.init_weights import load_init
from clq_train.processes import Processes, mean_over_processes
from clq_train.samples import Batch
from clq_train.schedule import build_optimizer, learning_rate


class NotFinite(TrainingError):
    """A loss or a gradient that is not finite; nothing was updated.

    batches  of this process in this step, `positives` the divisor of their losses, `losses` of each
    mine     whether the cause can lie in them: another process may have the only bad loss
    """

    def __init__(
        self,
        message: str,
        batches: Sequence[Batch],
        positives: float,
        losses: list[dict[str, float]],
        mine: bool,
    ) -> None:
        super().__init__(message)
        self.batches, self.positives, self.losses, self.mine = batches, positives, losses, mine


class Trainer:
    """The model, its optimiser and its moving average; one call of `step` a step.

    Of several processes, which are joined already, each has one, and all hold the same weights.
    """

    def __init__(
        self, config: Config, resumed: bool = False, processes: Processes | None = None
    ) -> None:
        torch.manual_seed(config.run.seed)
        self.config, self.schedule = config, config.schedule
        self.processes = processes or Processes()
        self.device = open_own_device(config.run.device, self.processes)
        check_precision(config.run.autocast, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        # cuDNN tries its algorithms once for each size of map: worth it where all crops are alike.
        torch.backends.cudnn.benchmark = config.augment.crop_px is not None
        model = ClqDetector(config.model, len(config.data.classes))
        load_init(model, None if resumed else config.init)
        if config.run.sync_norm:
            if self.device.type != "cuda":
                raise ConfigError(f"run.sync_norm: only on GPUs; run.device is {self.device}")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = in_training(model, self.device, self.schedule)
        self.graph = _graph(self.model, self.device, self.processes)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.model, self.schedule)
        scaled = config.run.autocast == "float16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.average = Average(self.model, self.schedule.ema) if self.schedule.ema else None

    def step(self, batches: Sequence[Batch], step: int) -> dict[str, float]:
        """One update from the gradients of all batches, of all processes.

        batches  `schedule.accumulate` of them, equally large
        returns  the losses by name, `positives`, `lr` and `grad_norm` (before clipping), the same
                 in every process: those of all images of the step

        Raises NotFinite. In float16 a gradient that is not finite is no error: the step is left out
        and the loss scale halved, until it is 1.
        """
        rate = learning_rate(self.schedule, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = [batch.images.to(self.device) for batch in batches]
        objects = [
            [Objects(o.boxes.to(self.device), o.labels.to(self.device)) for o in batch.objects]
            for batch in batches
        ]
        # 1. The divisor of all losses: assignment needs no predictions, so it is known beforehand.
        assigned = [self.model.assign(*pair) for pair in zip(images, objects, strict=True)]
        counts = torch.stack([(a.matches >= 0).sum() for a in assigned])
        positives = mean_over_processes(counts.float().mean()).clamp(min=1)
        # 2. The gradients, added up over the batches and averaged over the processes.
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for index, (pixels, labelled, own) in enumerate(
            zip(images, objects, assigned, strict=True), 1
        ):
            last = index == len(batches)
            losses = self._backward(
                pixels, labelled, Assigned(own.matches, positives), 1 / len(batches), last
            )
            parts.append(losses)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        # 3. The update, if everything is finite everywhere.
        values = self._check(parts, positives, norm, batches, step)
        if self.schedule.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.schedule.clip_norm, norm)
        with autocast(self.config.run.autocast, self.device):  # Muon's matrix products
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model, step)
        return values

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

    def restore(self, state: dict[str, Any], source: Path) -> int:
        """Takes up what a checkpoint holds and returns its step.

        Raises CheckpointError naming the source for the state of another model or optimiser.
        """
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            why = " ".join(str(error).split())  # torch lists every tensor on a line of its own
            raise CheckpointError(f"{source}: the state is not this model's: {why:.400}") from error
        if self.average is not None:
            self.average.weights = {k: v.to(self.device) for k, v in state["average"].items()}
        return int(state["step"])

    def _backward(
        self, images: Tensor, objects: list[Objects], assigned: Assigned, share: float, last: bool
    ) -> dict[str, Tensor]:
        """Adds the gradients of a share of the losses of a batch; returns the losses."""
        # Only the last batch of a step exchanges gradients, which by then are those of all.
        alone = not isinstance(self.graph, DistributedDataParallel)
        with nullcontext() if alone or last else self.graph.no_sync():
            with autocast(self.config.run.autocast, self.device):
                losses = self.graph(images, objects, assigned)
            del losses["positives"]
            self.scaler.scale(sum(losses.values()) * share).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _check(
        self,
        parts: list[dict[str, Tensor]],
        positives: Tensor,
        norm: Tensor,
        batches: Sequence[Batch],
        step: int,
    ) -> dict[str, float]:
        """What `step` returns; NotFinite if that can't be trained on."""
        own = torch.stack([torch.stack(list(part.values())) for part in parts])  # (batches, losses)
        *means, norm_value, divisor = mean_over_processes(
            torch.cat([own.mean(0), norm.view(1), positives.view(1)])
        ).tolist()
        values = dict(zip(parts[0], means, strict=True))
        loss_is_finite = all(math.isfinite(value) for value in means)
        norm_is_fine = math.isfinite(norm_value) or (
            self.scaler.is_enabled() and self.scaler.get_scale() > 1
        )
        rate = self.optimizer.param_groups[0]["lr"]
        if not (loss_is_finite and norm_is_fine):
            losses = [{k: v.item() for k, v in part.items()} for part in parts]
            what = "gradient" if loss_is_finite else "loss"
            files = ", ".join(path for batch in batches for path in batch.paths)
            raise NotFinite(
                f"step {step}: the {what} is not finite: {values}, grad_norm {norm_value:g}, "
                f"lr {rate:g}; images {files}",
                batches,
                divisor,
                losses,
                mine=loss_is_finite or not bool(own.isfinite().all()),
            )
        total = round(divisor * len(batches) * self.processes.count)
        return {**values, "positives": total, "lr": rate, "grad_norm": norm_value}


def in_training(model: ClqDetector, device: torch.device, schedule: ScheduleConfig) -> ClqDetector:
    """The detector on the device, in the layout and the mode that it trains in.

    With `schedule.frozen_statistics` its batch norms normalise by their running statistics; their
    factors and biases still learn. A small batch of screenshots has other statistics than the set,
    and those of an imported bundle are of its golden images: a network that is trained on under its
    own batch statistics is first of all another network.
    """
    # Channels last: 10 % faster on the CPU in bfloat16, the tensor cores' own layout on a GPU.
    model.to(device, memory_format=torch.channels_last).train()
    if schedule.frozen_statistics:
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
                module.eval()
    return model


class _Losses(nn.Module):
    """The losses as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: ClqDetector) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, objects: list[Objects], assigned: Assigned
    ) -> dict[str, Tensor]:
        return self.model.losses(images, objects, assigned)


def _graph(model: ClqDetector, device: torch.device, processes: Processes) -> nn.Module:
    """The losses of the model; of several processes their gradients are averaged."""
    if processes.count == 1:
        return _Losses(model)
    return DistributedDataParallel(
        _Losses(model),
        device_ids=None if device.index is None else [device.index],
        gradient_as_bucket_view=True,
    )
