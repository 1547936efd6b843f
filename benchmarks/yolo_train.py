"""The peer of yolo_peer.py: Ultralytics' YOLO, trained from nothing and put behind our engines.

Ultralytics' packages are AGPL-3.0 and no dependency of ours: they come from a folder of their own.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import yaml
from torch import Tensor, nn

from clq_serve.candidates import Candidates
from clq_serve.preprocess import Pixels
from clq_train.average import Average
from clq_train.batches import batches
from clq_train.coco import Record, load_split
from clq_train.config import Config
from clq_train.device import autocast
from clq_train.schedule import build_optimizer, learning_rate

PACKAGES = [
    "ultralytics==8.4.190",
    # what it imports
    *("opencv-python-headless==5.0.0.93", "polars==2.1.0", "psutil==7.2.2"),
    "ultralytics-thop==2.2.3",
]
# Its defaults are for 100 epochs. Where an epoch takes minutes, its rule of one update for 64
# images leaves hundreds of updates, so here each batch is one. The learning rate is the one that
# its optimizer=auto would have chosen for AdamW, see `train_own`.
RECIPE = {"imgsz": 640, "batch": 8, "nbs": 8, "optimizer": "AdamW", "momentum": 0.9}
WARMUP, MOSAIC = 0.03, 0.9  # shares of the run: 3 and 90 epochs of 100
ENDLESS = 10**6  # epochs
SLOTS = 3000  # of candidates, before the suppression


def isolate(folder: Path, home: Path) -> None:
    """Makes `import ultralytics` work, with its files below `home` and no word to the network.

    It would ask for the address of two hosts, send events to an analytics service, download a font
    and install what it misses.
    """
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
    os.environ["YOLO_CONFIG_DIR"] = str(home)
    sys.path.insert(0, str(folder))
    settings = home / "Ultralytics"
    settings.mkdir(parents=True, exist_ok=True)
    fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
    shutil.copy(fonts / "DejaVuSans.ttf", settings / "Arial.ttf")  # found, so not downloaded
    from ultralytics import settings as kept

    kept.update({name: False for name, value in kept.items() if isinstance(value, bool)})


def yolo_lines(record: Record) -> str:
    """The objects of an image as Ultralytics reads them: class and centre and size as shares."""
    sides = np.array([record.width, record.height] * 2)
    shares = centred(torch.from_numpy(record.boxes.astype(np.float64))).numpy() / sides
    return "".join(
        f"{label} " + " ".join(f"{share:.7f}" for share in row) + "\n"
        for label, row in zip(record.labels, shares, strict=True)
    )


def write_yolo(config: Config, folder: Path) -> Path:
    """The split train in Ultralytics' layout, images as links; returns its data file.

    It insists on a split val, which `train_own` never looks at: one image.
    """
    records = load_split(config.data, "train")
    for split, count in (("train", len(records)), ("val", 1)):
        images, labels = folder / "images" / split, folder / "labels" / split
        for made in (images, labels):
            made.mkdir(parents=True)
        for record in records[:count]:
            name = f"{record.image_id}{record.path.suffix}"
            (images / name).symlink_to(record.path.resolve())
            (labels / name).with_suffix(".txt").write_text(yolo_lines(record))
    tree = {"path": str(folder.resolve()), "train": "images/train", "val": "images/val"}
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({**tree, "names": dict(enumerate(config.data.classes))}))
    return path


def train_own(
    name: str, config: Config, out: Path, seconds: float, threads: int, changes: dict[str, Any]
) -> tuple[nn.Module, int, float]:
    """The averaged model, the batches and the seconds of Ultralytics' own trainer.

    changes  of RECIPE; `bfloat16` is a word of ours

    Its learning rate and its end of the mosaics follow the share of the wall time here, not the
    epochs, because it learns only after an epoch of minutes how many there will be. The validation
    after the run and the file of the weights are left out.
    """
    from ultralytics.engine import trainer as engine
    from ultralytics.models.yolo.detect import DetectionTrainer

    recipe = {"lr0": round(0.002 * 5 / (4 + len(config.data.classes)), 6)} | RECIPE | changes
    if recipe.pop("bfloat16", True):  # which it has for GPUs only
        engine.autocast = lambda *_, **__: torch.autocast("cpu", torch.bfloat16)
    begin, count, mosaic = 0.0, 0, True

    class Trainer(DetectionTrainer):
        def validate(self) -> tuple[dict[str, float], float]:
            return {}, 0.0

        def save_model(self) -> bool:
            return False

        def final_eval(self) -> None:
            pass

    def start(trainer: Trainer) -> None:
        nonlocal begin
        torch.set_num_threads(threads)  # which it has set to its own liking
        trainer.model.to(memory_format=torch.channels_last)  # a step takes a tenth less time
        begin = time.monotonic()

    def before_batch(trainer: Trainer) -> None:
        nonlocal count, mosaic
        count += 1
        share = min(1.0, (time.monotonic() - begin) / seconds)
        for group in trainer.optimizer.param_groups:
            rise, fall = min(1.0, share / WARMUP), 1 - (1 - trainer.args.lrf) * share
            group["lr"] = group["initial_lr"] * rise * fall
        if mosaic and share > MOSAIC:
            mosaic = False
            trainer._close_dataloader_mosaic()

    def after_epoch(trainer: Trainer) -> None:
        trainer.epochs = ENDLESS  # else its last epoch is one that it guesses to be the last

    fixed = {"model": f"{name}.yaml", "pretrained": False, "data": str(write_yolo(config, out))}
    fixed |= {"time": seconds / 3600, "warmup_epochs": 0, "close_mosaic": 0, "patience": 0}
    fixed |= {"device": "cpu", "workers": 0, "cache": "ram", "seed": config.run.seed}
    fixed |= {"val": False, "save": False, "plots": False, "verbose": False}
    fixed |= {"deterministic": False, "project": str(out.resolve()), "name": "run"}
    trainer = Trainer(overrides=fixed | recipe)
    trainer.add_callback("on_train_start", start)
    trainer.add_callback("on_train_batch_start", before_batch)
    trainer.add_callback("on_fit_epoch_end", after_epoch)
    trainer.train()
    return trainer.ema.ema, count, time.monotonic() - begin


def build(name: str, config: Config) -> nn.Module:
    """The model of Ultralytics, randomly initialised, with the weights of its losses."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(config.run.seed)
    model = DetectionModel(f"{name}.yaml", nc=len(config.data.classes), verbose=False)
    model.args = get_cfg()
    return model.to(memory_format=torch.channels_last).train()


def crop_steps(
    model: nn.Module, average: Average, config: Config, records: list[Record]
) -> Iterator[None]:
    """One of our training steps each: our crops, optimiser, schedule and average; its losses."""
    optimizer = build_optimizer(model, config.schedule)
    for step, (batch,) in enumerate(batches(records, config, 0), 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.schedule, step)
        count, height, width, _ = batch.images.shape
        boxes = torch.cat([o.boxes for o in batch.objects])
        truth = {
            "img": batch.images.permute(0, 3, 1, 2).float() / 255,
            "cls": torch.cat([o.labels for o in batch.objects])[:, None].float(),
            "bboxes": centred(boxes) / torch.tensor([width, height, width, height]),
            "batch_idx": torch.repeat_interleave(
                torch.arange(count), torch.tensor([len(o.labels) for o in batch.objects])
            ).float(),
        }
        with autocast(config.run.autocast, torch.device("cpu")):
            loss = model.loss(truth)[0].sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.schedule.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.schedule.clip_norm)
        optimizer.step()
        average.update(model, step)
        yield


def centred(boxes: Tensor) -> Tensor:
    """(M, 4) x1 y1 x2 y2 -> centre x, centre y, width, height."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)


class YoloEngine:
    """A YOLO of Ultralytics behind the interface of clq_serve's engines; our suppression."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().float().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(self, batch: Pixels) -> Candidates:
        images = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        found = self.model(images)[0].transpose(1, 2)  # (N, A, 4 + C): centre, size, scores
        every = found[..., 4:].flatten(1)  # (N, A * C)
        scores, places = every.topk(min(SLOTS, every.shape[1]))
        classes = found.shape[2] - 4
        anchors, labels = places // classes, places % classes
        centre, size = found[..., :4].gather(1, anchors[..., None].expand(-1, -1, 4)).split(2, 2)
        boxes = torch.cat([centre - size / 2, centre + size / 2], 2)
        arrays = [value.numpy() for value in (boxes, scores, labels, scores)]
        return Candidates(*arrays, np.ones_like(arrays[1]))
