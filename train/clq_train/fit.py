"""The training loop."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from clq_train.checkpoint import list_checkpoints, load_state, save_checkpoint
from clq_train.coco import Record, load_split
from clq_train.config import Config
from clq_train.errors import ConfigError
from clq_train.metrics_file import MetricsFile
from clq_train.samples import Batch, SampleStream, collate
from clq_train.trainer import Trainer


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


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
