"""What loading data costs a training: `python benchmarks/data_loading.py CONFIG [key=value ...]`.

For each number of worker processes: images/s of the loader alone, then real training steps, each
timed in two parts: the wait for its batch, and the step. The share of the wait is what the training
loses to data. On a CPU the workers also take processor time from the model: the last column is
their part of it. Images are read for the first time before anything is timed, so that with
run.cache_mib they come from the cache, and without it from files that the system has in memory.

--padding counts the pixels of whole images' batches that are padding, with and without
augment.group_aspect and augment.size_by_step.
"""

import argparse
import os
import time
from pathlib import Path

import torch

from clq_train.batches import batches
from clq_train.coco import Record, load_split
from clq_train.config import Config, load_config, parse_config
from clq_train.trainer import Trainer

AHEAD = 2  # batches that a DataLoader lets each worker prepare
WARM_STEPS = 4  # in which the workers fill their queues, and torch its caches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="data.root=DIR")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", default="0,1,2", help="numbers of worker processes")
    parser.add_argument("--padding", action="store_true", help="measure this instead")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    steps = arguments.steps
    # No more than the steps show, so that one epoch fills the cache.
    images = (WARM_STEPS + steps) * config.schedule.batch
    records = load_split(config.data, "train")[:images]
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}, {len(records)} images, {config.schedule.batch} a step")
    if arguments.padding:
        print_padding(records, config, steps)
        return
    print("workers   alone img/s   wait ms   step ms   share of wait   workers' processor time")
    trainer = Trainer(config)
    for workers in arguments.workers.split(","):
        print_share(trainer, records, changed(config, "run", workers=int(workers)), steps)


def print_share(trainer: Trainer, records: list[Record], config: Config, steps: int) -> None:
    epoch = -(-len(records) // config.schedule.batch)
    # Longer than is timed, so that the workers are as busy in the last step as in the first.
    phases = (epoch, steps, WARM_STEPS, steps, AHEAD * config.run.workers)
    loader = batches(records, changed(config, "schedule", steps=sum(phases)), 0)
    for _ in range(epoch):  # reads every image once
        next(loader)
    begun = time.perf_counter()
    for _ in range(steps):
        next(loader)
    alone = steps * config.schedule.batch / (time.perf_counter() - begun)
    for step in range(1, WARM_STEPS + 1):
        trainer.step(next(loader), step)
    waited = stepped = 0.0
    before = processor_times()
    for step in range(WARM_STEPS + 1, WARM_STEPS + steps + 1):
        asked = time.perf_counter()
        parts = next(loader)
        got = time.perf_counter()
        trainer.step(parts, step)
        waited, stepped = waited + got - asked, stepped + time.perf_counter() - got
    own, workers = (b - a for a, b in zip(before, processor_times(), strict=True))
    part = f"{100 * workers / (own + workers):.1f} %" if config.run.workers else "in the wait"
    print(
        f"{config.run.workers:7} {alone:13.0f} {1e3 * waited / steps:9.1f}"
        f" {1e3 * stepped / steps:9.0f} {100 * waited / (waited + stepped):13.2f} % {part:>25}"
    )


def print_padding(records: list[Record], config: Config, steps: int) -> None:
    print("group_aspect  size_by_step   padding   Mpx an image")
    for group in (False, True):
        for by_step in (False, True):
            rules = changed(config, "augment", group_aspect=group, size_by_step=by_step)
            once = changed(changed(rules, "schedule", steps=steps), "run", workers=2)
            pixels = content = 0
            for (batch,) in batches(records, once, 0):
                pixels += batch.images[..., 0].numel()
                pad = torch.tensor(config.input.pad_value, dtype=torch.uint8)
                # Whole rows and columns at the right and bottom; colours inside do not matter.
                for image in batch.images:
                    other = (image != pad).any(-1)
                    content += int(other.any(1).sum()) * int(other.any(0).sum())
            shown = steps * config.schedule.batch
            print(f"{group!s:>12} {by_step!s:>13} {100 * (1 - content / pixels):7.1f} %", end="")
            print(f" {pixels / shown / 1e6:14.2f}")


def changed(config: Config, section: str, **values: object) -> Config:
    tree = config.model_dump(mode="json")
    tree[section] |= values
    return parse_config(tree, "benchmark")


def processor_times() -> tuple[float, float]:
    """Seconds that this process, and its worker processes, have run so far."""
    workers = 0.0
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            workers += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")  # user, system
    return time.process_time(), workers


if __name__ == "__main__":
    main()
