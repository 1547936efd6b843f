"""The training loop."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from clq_train.batches import batches, images_at_once
from clq_train.checkpoint import checkpoint_folder, load_state
from clq_train.coco import Record, load_split, training_records
from clq_train.config import Config
from clq_train.device import check_precision, open_own_device
from clq_train.errors import TrainingError
from clq_train.event_file import check_tensorboard
from clq_train.keeping import Keeper
from clq_train.nonfinite import write_dump
from clq_train.processes import Processes, find_processes, joined, wait_for_all
from clq_train.resuming import check_resumed
from clq_train.run_folder import find_start, opened
from clq_train.samples import Batch
from clq_train.trainer import NotFinite, Trainer

log = logging.getLogger(__name__)


def fit(config: Config, run: Path, resume: bool = False, progress: bool = True) -> Path:
    """Trains on the split `train` and returns the folder of the last checkpoint.

    config    of the run; saved in every checkpoint
    run       folder of the run; must hold no checkpoint unless `resume`, which goes on from its
              last one, or begins if there is none
    progress  on stderr: a bar on a terminal, lines elsewhere

    Under torchrun every process calls it. What can be wrong with configuration, data, checkpoint
    and hardware is found before the first step: ConfigError, DataError, CheckpointError. A run that
    can't go on raises TrainingError, or one of them; its checkpoints are whole.
    """
    processes = find_processes()
    check_precision(config.run.autocast, open_own_device(config.run.device, processes))
    images_at_once(config.schedule, processes)
    if config.run.tensorboard:
        check_tensorboard()
    begin = find_start(run, resume)
    if begin is not None:
        for line in check_resumed(begin, config):
            log.info("resumed with another configuration: %s", line)
    elif resume:
        log.info("%s: nothing to resume: the run begins", run)
    records = training_records(config.data)
    if config.run.eval_every is not None and processes.leads:
        load_split(config.data, "val")
    try:
        _train(config, run, records, begin, processes, progress)
    except OSError as error:
        raise TrainingError(
            f"{error.filename or run}: {error.strerror or error}; the checkpoints of the run are "
            "whole, --resume goes on from the last"
        ) from error
    return checkpoint_folder(run, config.schedule.steps)


def _train(
    config: Config,
    run: Path,
    records: Sequence[Record],
    begin: Path | None,
    processes: Processes,
    progress: bool,
) -> None:
    with ExitStack() as stack:
        if processes.leads:
            stack.enter_context(opened(run))
        stack.enter_context(joined(processes, open_own_device(config.run.device, processes)))
        trainer = Trainer(config, begin is not None, processes)
        start = 0 if begin is None else trainer.restore(load_state(begin), begin)
        keeper = None
        if processes.leads:
            keeper = stack.enter_context(Keeper(config, run, trainer, start, progress))
        for step, parts in enumerate(batches(records, config, start, processes), start + 1):
            values = _step(trainer, parts, step, run)
            if keeper is not None:
                keeper.after(step, values)


def _step(trainer: Trainer, parts: Sequence[Batch], step: int, run: Path) -> dict[str, float]:
    """Trainer.step; a batch that can't be trained on is kept in the folder of the run."""
    try:
        return trainer.step(parts, step)
    except NotFinite as error:
        dump = write_dump(run, step, trainer, error) if error.mine else None
        wait_for_all()  # nobody ends before every dump is whole
        if dump is None:
            wait_for_all()  # for ever: one that has the cause tells it, and torchrun ends all
        raise TrainingError(f"{error}\nto see it again: clq-train replay {dump}") from error
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"step {step}: the GPU's memory is full ({error}); raise schedule.accumulate: each "
            "doubling halves what is computed at once"
        ) from error
