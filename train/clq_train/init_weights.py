"""Weights that a run starts from: the configuration's `init`, written by `clq-train import`."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clq_train.detector import ClqDetector
from clq_train.errors import CheckpointError

log = logging.getLogger(__name__)

COUNTER = ".num_batches_tracked"  # of a batch norm; nothing reads it


def load_init(model: ClqDetector, path: Path | None) -> None:
    """Copies the tensors of a .safetensors file into the detector; None leaves it as it is.

    The file holds tensors of the detector's own names, all or some of them; those that it lacks
    stay at their start value and are logged by module.

    Raises CheckpointError naming the file, and the tensor that the detector does not have or has
    in another shape; then the detector is unchanged.
    """
    if path is None:
        return
    tensors = read_safetensors(path)
    own = model.state_dict()
    for name, value in tensors.items():
        if problem := misfit(own, name, value):
            raise CheckpointError(
                f"{path}: {name}: {problem}; make the file for this configuration by "
                "clq-train import --config, or leave the module out by its --only"
            )
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
    log.info("init: %s: %d of %d tensors taken", path, len(tensors), len(own))
    for line in started(own, tensors):
        log.info("init: at its start value: %s", line)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, at least one.  Raises CheckpointError naming the file."""
    try:
        tensors = load_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: no safetensors file: {error}") from error
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensor")
    return tensors


def misfit(own: dict[str, Tensor], name: str, value: Tensor) -> str | None:
    """Why the tensor can't be taken into the detector of state dict `own`, None if it can."""
    if name not in own:
        return "the detector has no such tensor"
    if own[name].shape != value.shape:
        return f"shape {list(value.shape)}, the detector's is {list(own[name].shape)}"
    return None


def started(own: Iterable[str], taken: Iterable[str]) -> list[str]:
    """What of `own` is not in `taken`, a line each module: `head.cls: 2 of 2 tensors`."""
    own, taken = list(own), set(taken)
    left = [name for name in own if name not in taken]
    total, stays = (
        Counter(module(n) for n in names if not n.endswith(COUNTER)) for names in (own, left)
    )
    lines = [f"{part}: {count} of {total[part]} tensors" for part, count in stays.items()]
    counters = sum(name.endswith(COUNTER) for name in left)
    return lines + [f"num_batches_tracked of {counters} batch norms, unused"] * (counters > 0)


def module(name: str) -> str:
    """The module of a tensor for a summary: `neck.lateral`, `backbone.stages.3`."""
    parts = name.split(".")
    return ".".join(parts[: 3 if parts[1] == "stages" else 2])
