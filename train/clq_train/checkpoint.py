"""Checkpoints: folders `RUN/step-NNNNNN`, written beside and renamed: whole or not there.

model.safetensors   the weights to evaluate and export (the moving average where the run keeps one)
train_state.pt      what training needs to go on: raw weights, optimiser, step
config.yaml         the resolved configuration
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clq_train.config import Config, dump_config, load_config
from clq_train.detector import ClqDetector
from clq_train.errors import CheckpointError

WEIGHTS, STATE, CONFIG = "model.safetensors", "train_state.pt", "config.yaml"


def save_checkpoint(
    run: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any], config: Config
) -> Path:
    """The folder of a new checkpoint; older ones beyond run.keep are removed after it stands."""
    final = run / f"step-{step:06d}"
    partial = run / f"{final.name}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, partial / WEIGHTS)
    torch.save(state, partial / STATE)
    (partial / CONFIG).write_text(dump_config(config))
    for file in partial.iterdir():
        _sync(file)
    if final.exists():  # the same step once more: a resumed run
        shutil.rmtree(final)
    os.replace(partial, final)
    _sync(run)
    for old in list_checkpoints(run)[: -config.run.keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(p for p in run.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name))


def load_model(checkpoint: Path) -> tuple[ClqDetector, Config]:
    """The detector of a checkpoint in evaluation mode, and its configuration.

    Raises CheckpointError naming the folder, the file or the tensor that does not fit.
    """
    config = load_config(checkpoint / CONFIG, [])
    model = ClqDetector(config.model, len(config.data.classes))
    try:
        weights = load_file(checkpoint / WEIGHTS)
        model.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint / WEIGHTS}: {error}") from error
    return model.eval(), config


def load_state(checkpoint: Path) -> dict[str, Any]:
    """What save_checkpoint was given as `state`; tensors and plain values only."""
    try:
        return torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{checkpoint / STATE}: {error}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
