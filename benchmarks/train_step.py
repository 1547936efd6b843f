"""What a training step costs here, in MMDetection, and with torchvision's DCN in place of ours.

    python benchmarks/train_step.py [--mmdet FOLDER]     FOLDER as `mmdet_atss.py install` fills it

Each row is a process of its own with a whole trainer: a step is the pixels' normalisation, forward,
losses, backward, clipping where the configuration clips, optimiser and moving average. Within a
table the processes take their steps in turn while the others wait, so that other work on the
machine meets all of them. `images/s` is that of the median step, and the ratio beside it the median
over the rounds of the last row's step by this row's in the same round; `cpu s` is the least
processor time of a step, which other work can only add to, and the ratio that of these. `memory` is
the peak of the resident memory during steps above that before the first.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import deform_conv2d

import clq_train.clq
from clq_train.clq import Objects
from clq_train.config import Config, load_config
from clq_train.samples import Batch
from clq_train.trainer import Trainer

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "train/configs"
ROUNDS = 7
SIZE, BATCH = (320, 512), 2  # of ATSS-R50
CROP, CROPS = 448, 4
OBJECTS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mmdet", type=Path, help="where `mmdet_atss.py install` put it")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="1 where other work runs too"
    )
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    load = os.getloadavg()[0]
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # of the processes
    print(f"{arguments.threads} threads, torch {torch.__version__}, load {load:.1f}")
    ours = [sys.executable, __file__, "--serve"]
    atss = {"here, bfloat16": [*ours, "atss", "bfloat16"], "here": [*ours, "atss", "off"]}
    if arguments.mmdet:
        theirs = [sys.executable, str(HERE / "mmdet_atss.py"), "step", str(arguments.mmdet)]
        theirs += [str(BATCH), *map(str, SIZE), str(OBJECTS)]
        atss["MMDetection, norms frozen, bfloat16"] = [*theirs, "bfloat16"]
        atss["MMDetection, norms frozen"] = theirs  # what is trained is the same as here
        atss["MMDetection, as it is configured"] = [*theirs, "norms"]
    print(f"\nATSS-R50, {BATCH} images of {SIZE[1]} x {SIZE[0]}, float32 but for bfloat16")
    compare(atss, BATCH, arguments.rounds)
    print(f"\nwebui_nano.yaml: {CROPS} crops of {CROP} x {CROP}, bfloat16")
    nano = {
        "here": [*ours, "nano", "taps"],
        "here, torchvision's DCN": [*ours, "nano", "torchvision"],
    }
    compare(nano, CROPS, arguments.rounds)


def compare(commands: dict[str, list[str]], images: int, rounds: int) -> None:
    workers = {name: start(command) for name, command in commands.items()}
    took: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for _ in range(rounds + 1):
        for name, worker in workers.items():
            print("step", file=worker.stdin, flush=True)
            took[name].append(json.loads(worker.stdout.readline()))
    print(f"{'':36} {'images/s':>9} {'ratio':>7} {'cpu s':>7} {'ratio':>7} {'memory':>10}")
    steps = {name: answers[1:] for name, answers in took.items()}  # the first warms up
    last = list(steps.values())[-1]
    for name, answers in steps.items():
        pairs = zip(answers, last, strict=True)
        faster = statistics.median(b["seconds"] / a["seconds"] for a, b in pairs)
        wall = statistics.median(answer["seconds"] for answer in answers)
        cpu, least = (min(a["cpu_seconds"] for a in those) for those in (answers, last))
        print(
            f"{name:36} {images / wall:9.2f} {faster:6.2f}x {cpu:7.2f} {least / cpu:6.2f}x", end=""
        )
        print(f" {answers[-1]['mib']:6.0f} MiB", flush=True)
    for worker in workers.values():
        worker.communicate()  # closes its input, which ends it


def start(command: list[str]) -> subprocess.Popen[str]:
    worker = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    line = worker.stdout.readline()
    assert line == "ready\n", f"{command}: {line}"
    return worker


def serve(network: str, variant: str) -> None:
    """A process that takes a step for each line on its standard input."""
    if network == "atss":
        changes = ["init=null", "run.device=cpu", f"run.autocast={variant}"]
        config, count, (height, width) = config_of("atss_r50_1x", changes), BATCH, SIZE
    else:
        config, count, (height, width) = config_of("webui_nano", []), CROPS, (CROP, CROP)
        if variant == "torchvision":
            # Its CPU kernel has no bfloat16.
            clq_train.clq.deform_conv3x3 = lambda *args: deform_conv2d(
                *(value.float() for value in args), padding=1
            )
    images, boxes, labels = samples(count, height, width, OBJECTS, len(config.data.classes))
    objects = [
        Objects(torch.from_numpy(boxes[i]), torch.from_numpy(labels[i])) for i in range(count)
    ]
    batch = Batch(torch.from_numpy(images), objects, ["drawn"] * count)
    trainer = Trainer(config)
    answer(lambda number: trainer.step([batch], number))


def config_of(name: str, changes: list[str]) -> Config:
    return load_config(CONFIGS / f"{name}.yaml", changes)


def samples(count: int, height: int, width: int, objects: int, classes: int):
    """The same for everyone: pixels (B, H, W, 3) uint8, boxes [(M, 4)] float32, labels [(M,)]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    boxes, labels = [], []
    for _ in range(count):
        size = np.exp(rng.uniform(np.log(12), np.log(height / 2), (objects, 2)))
        corner = rng.uniform(0, 1, (objects, 2)) * ([width, height] - size)
        boxes.append(np.concatenate([corner, corner + size], 1).astype(np.float32))
        labels.append(rng.integers(0, classes, objects))
    return images, boxes, labels


def answer(step) -> None:
    """`ready`, then for each line of the standard input a step, its seconds and the peak memory."""
    before = memory_mib("VmRSS")
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin, 1):
        wall, cpu = time.perf_counter(), time.process_time()
        step(number)
        found = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps(found | {"mib": memory_mib("VmHWM") - before}), flush=True)


def memory_mib(key: str) -> float:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
