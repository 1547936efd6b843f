"""The batches of a run, in order: which images each process sees in each step."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch.utils.data import DataLoader

from clq_train.coco import Record
from clq_train.config import Config, ScheduleConfig
from clq_train.errors import ConfigError, DataError, TrainingError
from clq_train.processes import Processes
from clq_train.samples import Batch, SampleStream, collate


def batches(
    records: Sequence[Record], config: Config, start: int, processes: Processes | None = None
) -> Iterator[list[Batch]]:
    """The batches of one process in the steps start + 1 .. schedule.steps, a list for each step.

    Raises DataError for an image that can't be read, TrainingError for a worker that was killed.
    """
    processes = processes or Processes()
    loader = DataLoader(
        SampleStream(records, config, processes.local_count),
        batch_sampler=positions(config.schedule, start, processes),
        num_workers=config.run.workers,
        collate_fn=partial(
            collate, multiple=config.model.strides[-1], pad_value=config.input.pad_value
        ),
        # Workers inherit the parent's threads setting; one each keeps them out of the model's way.
        worker_init_fn=_one_thread,
    )
    try:
        parts = iter(loader)
        for _ in range(start, config.schedule.steps):
            yield [next(parts) for _ in range(config.schedule.accumulate)]
    except DataError as error:
        # torch puts the traceback of a worker before its error.
        message = str(error).rpartition(f"{DataError.__module__}.{DataError.__name__}: ")[2]
        raise DataError(message.strip()) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"{error}; if memory ran out: fewer run.workers or a smaller run.cache_mib"
        ) from error


def positions(schedule: ScheduleConfig, start: int, processes: Processes) -> Iterator[list[int]]:
    """Stream positions of each batch of one process, from step start + 1 on.

    Step s takes the positions (s - 1) * batch .. s * batch - 1, in parts of `accumulate` batches
    for each process: what a step sees does not depend on the number of processes.
    """
    size = images_at_once(schedule, processes)
    for step in range(start, schedule.steps):
        first = step * schedule.batch + processes.rank * size * schedule.accumulate
        for part in range(schedule.accumulate):
            yield list(range(first + part * size, first + (part + 1) * size))


def images_at_once(schedule: ScheduleConfig, processes: Processes) -> int:
    """Images in each batch of a process; ConfigError if they can't be shared out evenly."""
    parts = processes.count * schedule.accumulate
    if schedule.batch % parts:
        raise ConfigError(
            f"schedule.batch: {schedule.batch} images can't be shared out evenly among "
            f"{processes.count} processes, schedule.accumulate {schedule.accumulate}: "
            f"accepted: multiples of {parts}"
        )
    return schedule.batch // parts


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
