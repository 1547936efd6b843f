"""Our model and Ultralytics' smallest YOLO, from nothing, on the same data, in the same wall time.

    python benchmarks/yolo_peer.py install FOLDER           Ultralytics and what it imports
    python benchmarks/yolo_peer.py compare FOLDER train/configs/webui_nano.yaml data.root=DATA \\
        --minutes 60 --threads 2 --out runs/yolo

Each row is a process of its own on as many cores as it has threads, and is measured on the splits
val and test by the function behind `clq-train eval`:

    clq         the configuration, with as many steps as fit into the time
    yolo        Ultralytics' trainer and augmentation (`RECIPE` of yolo_train.py, changed by --yolo)
    yolo-crops  Ultralytics' model and losses; crops, optimiser, schedule and average as in clq

`clq` and `yolo-crops` see an image as the service would. `yolo` sees it at the one of --sizes (the
longer side, never enlarged) that is best on val. YOLO's scores count from 0.001 on and its boxes
are suppressed from an IoU of 0.7 on, which are its own settings. A row whose result is in the
folder already is not trained again.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from package_folder import install
from yolo_train import PACKAGES, RECIPE, YoloEngine, build, crop_steps, isolate, train_own

from clq_serve.detector import DetectOptions, Engine
from clq_serve.preprocess import InputRule
from clq_train.average import Average
from clq_train.batches import batches
from clq_train.checkpoint import load_model
from clq_train.coco import Record, load_split
from clq_train.config import Config, load_config
from clq_train.device import keep_freed_memory
from clq_train.evaluate import TorchEngine, evaluate
from clq_train.fit import fit
from clq_train.samples import read_pixels
from clq_train.trainer import Trainer

ROWS = ("clq", "yolo", "yolo-crops")
SPLITS = ("val", "test")
METRICS = ("ap", "ap50", "ap75")
TIMED = 20  # steps, to learn how many fit into the time
SEEN = 2  # the first of them, which decode their images; in a long run few do
YOLO_SCORE, YOLO_IOU = 0.001, 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install").add_argument("folder", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("folder", type=Path, help="as `install` fills it")
    comparing.add_argument("config", type=Path)
    comparing.add_argument("overrides", nargs="*", help="such as data.root=DATA")
    comparing.add_argument("--out", type=Path, required=True)
    comparing.add_argument("--minutes", type=float, default=60, help="for each row")
    comparing.add_argument("--threads", type=int, default=1)
    comparing.add_argument("--rows", default=",".join(ROWS))
    comparing.add_argument("--model", default="yolo11n", help="or yolov8n")
    comparing.add_argument("--yolo", nargs="*", default=[], help="such as imgsz=960 bfloat16=false")
    comparing.add_argument("--sizes", default="640,960,1280", help="of row yolo, pixels")
    comparing.add_argument("--row", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.command == "install":
        install(asked.folder, PACKAGES)
    elif asked.row:
        train_row(asked)
    else:
        compare(asked)


def compare(asked: argparse.Namespace) -> None:
    """Trains and measures what is missing, and prints the table."""
    asked.out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(asked.threads)}
    results = []
    for row in asked.rows.split(","):
        path = asked.out / f"{row}.json"
        if not path.exists():
            command = [sys.executable, *sys.argv, "--row", row]
            subprocess.run(command, check=True, env=environment)
        results.append(json.loads(path.read_text()))
    base = results[0]
    print(
        f"{asked.threads} threads, {asked.minutes:g} minutes, torch {torch.__version__}, ", end=""
    )
    print(f"load {os.getloadavg()[0]:.1f}; differences are from {base['row']}\n")
    print(
        "| row | parameters | minutes | batches | images | split | AP | AP50 | AP75 | difference |"
    )
    print("|---" * 10 + "|")
    for result, split in itertools.product(results, SPLITS):
        found = result[split]
        cells = [result["row"], f"{result['parameters'] / 1e6:.2f} M"]
        cells += [f"{result['seconds'] / 60:.1f}", str(result["steps"]), str(result["images"])]
        cells += [split, *(f"{100 * found[metric]:.1f}" for metric in METRICS)]
        cells.append(f"{100 * (found['ap'] - base[split]['ap']):+.1f}")
        print(f"| {' | '.join(cells)} |")
    for result in results:
        if "by_size" in result:
            sizes = ", ".join(f"{size} px {100 * ap:.1f}" for size, ap in result["by_size"].items())
            print(f"\n{result['row']}: AP on val by the longer side: {sizes}")


def train_row(asked: argparse.Namespace) -> None:
    """Trains one row in this process and writes its result."""
    cores = sorted(os.sched_getaffinity(0))[: asked.threads]
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(asked.threads)
    asked.overrides.append("run.workers=0")
    config = load_config(asked.config, asked.overrides)
    run, seconds = asked.out / f"{asked.row}-{time.strftime('%H%M%S')}", 60 * asked.minutes
    if asked.row != "clq":
        isolate(asked.folder, run)
        keep_freed_memory()  # as our trainer does
    rows = {"clq": clq_row, "yolo": yolo_row, "yolo-crops": crops_row}
    result = rows[asked.row](asked, config, run, seconds)
    path = asked.out / f"{asked.row}.json"
    path.write_text(json.dumps({"row": asked.row, "cores": len(cores), **result}, indent=1))


def clq_row(asked: argparse.Namespace, config: Config, run: Path, seconds: float) -> dict[str, Any]:
    records = load_split(config.data, "train")
    few = records[: SEEN * config.schedule.batch]
    config = fitted(clq_steps(config, few), seconds - decoding_s(records, config), asked)
    began = time.monotonic()
    checkpoint = fit(config, run)
    took = time.monotonic() - began
    model, _ = load_model(checkpoint)
    engine = TorchEngine(model)
    options = DetectOptions(config.eval.score, config.eval.iou, config.eval.max)
    return {
        **told(model, took, config.schedule.steps, config.schedule.batch),
        **{split: measured(engine, config.input_rule, config, split, options) for split in SPLITS},
    }


def yolo_row(
    asked: argparse.Namespace, config: Config, run: Path, seconds: float
) -> dict[str, Any]:
    changes = {key: yaml.safe_load(value) for key, value in (e.split("=") for e in asked.yolo)}
    trained = train_own(asked.model, config, run, seconds, asked.threads, changes)
    model, steps, took = trained
    engine, options = YoloEngine(model), yolo_options(config)
    rules = {int(size): yolo_rule(config, int(size)) for size in asked.sizes.split(",")}
    found = {n: measured(engine, rule, config, "val", options) for n, rule in rules.items()}
    best = max(found, key=lambda size: found[size]["ap"])
    return {
        **told(model, took, steps, (RECIPE | changes)["batch"]),
        "by_size": {size: value["ap"] for size, value in found.items()},
        "val": found[best],
        "test": measured(engine, rules[best], config, "test", options),
    }


def crops_row(
    asked: argparse.Namespace, config: Config, run: Path, seconds: float
) -> dict[str, Any]:
    model = build(asked.model, config)
    average = Average(model, config.schedule.ema)
    records = load_split(config.data, "train")
    few = records[: SEEN * config.schedule.batch]
    left_s = seconds - decoding_s(records, config)
    config = fitted(crop_steps(model, average, config, few), left_s, asked)
    model = build(asked.model, config)
    average = Average(model, config.schedule.ema)
    began = time.monotonic()
    for _ in crop_steps(model, average, config, records):
        pass
    took = time.monotonic() - began
    model.load_state_dict(average.weights)
    engine, options = YoloEngine(model), yolo_options(config)
    return {
        **told(model, took, config.schedule.steps, config.schedule.batch),
        **{split: measured(engine, config.input_rule, config, split, options) for split in SPLITS},
    }


def clq_steps(config: Config, records: list[Record]) -> Iterator[None]:
    """One training step each."""
    trainer = Trainer(config)
    for step, parts in enumerate(batches(records, config, 0), 1):
        trainer.step(parts, step)
        yield


def decoding_s(records: list[Record], config: Config) -> float:
    """What decoding all images once will take, judged by the first ones."""
    few = records[:TIMED]
    began = time.monotonic()
    for record in few:
        read_pixels(record, config.input.background)
    return (time.monotonic() - began) * len(records) / len(few)


def fitted(taking: Iterator[None], seconds: float, asked: argparse.Namespace) -> Config:
    """The configuration with as many steps as fit into the seconds, judged by the first ones."""
    took = []
    for _ in range(TIMED):
        began = time.monotonic()
        next(taking)
        took.append(time.monotonic() - began)
    steps = max(1, round(seconds / statistics.mean(took[SEEN:])))
    changes = [f"schedule.steps={steps}", f"schedule.warmup_steps={steps // 20}"]
    changes += [f"run.checkpoint_every={steps}", "run.eval_every=null"]
    return load_config(asked.config, [*asked.overrides, *changes])


def yolo_rule(config: Config, size: int) -> InputRule:
    """How Ultralytics would size an image, but that none is enlarged."""
    return InputRule(size, size, False, 32, (114, 114, 114), config.input.background)


def yolo_options(config: Config) -> DetectOptions:
    return DetectOptions(YOLO_SCORE, YOLO_IOU, config.eval.max)


def measured(
    engine: Engine, rule: InputRule, config: Config, split: str, options: DetectOptions
) -> dict[str, float]:
    found = evaluate(engine, rule, config.data, split, options, progress=False)
    return {metric: getattr(found, metric) for metric in METRICS}


def told(model: torch.nn.Module, seconds: float, steps: int, batch: int) -> dict[str, float]:
    parameters = sum(value.numel() for value in model.parameters())
    return {
        "parameters": parameters,
        "seconds": seconds,
        "steps": steps,
        "images": steps * batch,
    }


if __name__ == "__main__":
    main()
