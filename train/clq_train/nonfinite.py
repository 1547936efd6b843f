"""A folder with all that a step needs which gave a loss or a gradient that is not finite.

batches.safetensors   images, boxes and labels of each batch: `0.images`, `0.3.boxes`, `0.3.labels`
model.safetensors     the raw weights that they met
config.yaml           the resolved configuration
losses.json           the step, the losses of each batch, and the files of its images
"""

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clq_train.checkpoint import CONFIG, WEIGHTS
from clq_train.clq import Objects
from clq_train.config import dump_config
from clq_train.errors import CheckpointError
from clq_train.samples import Batch
from clq_train.trainer import NotFinite, Trainer

BATCHES, LOSSES = "batches.safetensors", "losses.json"


def write_dump(run: Path, step: int, trainer: Trainer, error: NotFinite) -> Path:
    """The folder `RUN/nonfinite-step-NNNNNN`, with the process's number where there are several."""
    processes = trainer.processes
    suffix = f"-process-{processes.rank}" if processes.count > 1 else ""
    final = run / f"nonfinite-step-{step:06d}{suffix}"
    partial = final.with_name(final.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    for number, batch in enumerate(error.batches):
        tensors[f"{number}.images"] = batch.images
        for place, objects in enumerate(batch.objects):
            tensors[f"{number}.{place}.boxes"] = objects.boxes
            tensors[f"{number}.{place}.labels"] = objects.labels
    save_file(tensors, partial / BATCHES)
    weights = trainer.model.state_dict()
    save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, partial / WEIGHTS)
    (partial / CONFIG).write_text(dump_config(trainer.config))
    story = {
        "step": step,
        "positives": error.positives,
        "batches": [
            {"images": batch.paths, "losses": {k: repr(v) for k, v in losses.items()}}
            for batch, losses in zip(error.batches, error.losses, strict=True)
        ],
    }
    (partial / LOSSES).write_text(json.dumps(story, indent=2))
    shutil.rmtree(final, ignore_errors=True)  # of the same step, which was tried before
    os.replace(partial, final)
    return final


def read_dump(dump: Path) -> tuple[list[Batch], float]:
    """The batches and the divisor of their losses; CheckpointError for a folder without them."""
    try:
        story = json.loads((dump / LOSSES).read_text())
        tensors = load_file(dump / BATCHES)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{dump}: no dump of a step: {error}") from error
    batches = []
    for number, entry in enumerate(story["batches"]):
        objects = [
            Objects(tensors[f"{number}.{place}.boxes"], tensors[f"{number}.{place}.labels"])
            for place in range(len(entry["images"]))
        ]
        batches.append(Batch(tensors[f"{number}.images"], objects, entry["images"]))
    return batches, float(story["positives"])
