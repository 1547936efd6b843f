"""Checkpoints: folders `RUN/step-NNNNNN`, written beside and renamed: whole or not there.

model.safetensors   the weights to evaluate and export (the moving average where the run keeps one)
train_state.pt      what training needs to go on: raw weights, optimiser, step
config.yaml         the resolved configuration
SHA256SUMS          of the first two, as `sha256sum --check` reads them
"""

import hashlib
import os
import pickle
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

WEIGHTS, STATE, CONFIG, SUMS = "model.safetensors", "train_state.pt", "config.yaml", "SHA256SUMS"
STATE_KEYS = frozenset({"step", "model", "optimizer", "scaler", "average"})
BEST = "best"  # a link to the checkpoint of largest AP


def save_checkpoint(
    run: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any], config: Config
) -> Path:
    """The folder of a new checkpoint.

    Older ones beyond run.keep, except the best, are removed after it stands. Raises CheckpointError
    if it can't be written, with nothing lost of what is there.
    """
    final = _place(run, step, weights, state, config)
    best = best_checkpoint(run)
    for old in list_checkpoints(run)[: -config.run.keep]:
        if old != best:
            shutil.rmtree(old)
    return final


def save_weights(run: Path, weights: dict[str, Tensor], config: Config) -> Path:
    """A checkpoint `run`/step-000000 to evaluate and export, without the state of a training.

    Raises CheckpointError if it is there already or can't be written.
    """
    if (final := checkpoint_folder(run, 0)).exists():
        raise CheckpointError(f"{final}: is there already")
    return _place(run, 0, weights, None, config)


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / f"step-{step:06d}"


def checkpoint_step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def list_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    whole = (p for p in run.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name))
    return sorted(whole, key=checkpoint_step)


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint that the link `best` of a run leads to, if there is one."""
    link = run / BEST
    return run / os.readlink(link) if link.is_symlink() else None


def link_best(run: Path, checkpoint: Path) -> None:
    """Makes `best` of a run lead to one of its checkpoints, in one step."""
    beside = run / f"{BEST}.tmp"
    beside.unlink(missing_ok=True)
    beside.symlink_to(checkpoint.name)
    os.replace(beside, run / BEST)


def load_model(checkpoint: Path) -> tuple[ClqDetector, Config]:
    """The detector of a checkpoint in evaluation mode, and its configuration.

    Raises CheckpointError naming the folder, the file or the tensor that does not fit.
    """
    config = load_config(checkpoint / CONFIG, [])
    model = ClqDetector(config.model, len(config.data.classes))
    _verify(checkpoint, WEIGHTS)
    try:
        weights = load_file(checkpoint / WEIGHTS)
        model.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint / WEIGHTS}: {error}") from error
    return model.eval(), config


def load_state(checkpoint: Path) -> dict[str, Any]:
    """What save_checkpoint was given as `state`; tensors and plain values only.

    Raises CheckpointError for a damaged file and for one that holds something else.
    """
    _verify(checkpoint, STATE)
    try:
        state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{checkpoint / STATE}: can't be read: {error}") from error
    missing = STATE_KEYS - state.keys() if isinstance(state, dict) else STATE_KEYS
    if missing:
        raise CheckpointError(
            f"{checkpoint / STATE}: no state of a run: it lacks {', '.join(sorted(missing))}"
        )
    return state


def _place(
    run: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any] | None, config: Config
) -> Path:
    """Writes the folder beside and renames it.  Raises CheckpointError with nothing lost."""
    final = checkpoint_folder(run, step)
    partial = run / f"{final.name}.tmp"
    try:
        _write(partial, weights, state, config)
        os.replace(partial, final)
        _sync(run)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        # torch tells of a failed write by an error of its own.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        text = f"{final}: not saved: {reason}"
        if run.is_dir():
            text += f"; {shutil.disk_usage(run).free // 2**20} MiB are free there"
        if state is not None:
            text += "; the earlier checkpoints are whole, --resume goes on from the last"
        raise CheckpointError(text) from error
    return final


def _write(
    folder: Path, weights: dict[str, Tensor], state: dict[str, Any] | None, config: Config
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / WEIGHTS)
    files = [WEIGHTS]
    if state is not None:
        with (folder / STATE).open("wb") as file:
            torch.save(state, file)
        files.append(STATE)
    (folder / CONFIG).write_text(dump_config(config))
    sums = [f"{_sha256(folder / name)}  {name}\n" for name in files]
    (folder / SUMS).write_text("".join(sums))
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


def _verify(checkpoint: Path, name: str) -> None:
    """Raises CheckpointError if a file is not the one that was written."""
    try:
        lines = (checkpoint / SUMS).read_text().splitlines()
    except FileNotFoundError:
        return  # of an older version, or weights that a person put together
    except OSError as error:
        raise CheckpointError(f"{checkpoint / SUMS}: {error.strerror}") from error
    sums = {line[66:]: line[:64] for line in lines}
    if name == STATE and name not in sums:
        raise CheckpointError(
            f"{checkpoint}: was imported, not trained: there is no state to go on from; start a "
            "run from the weights (clq-train import --out, then init=FILE)"
        )
    try:
        found = _sha256(checkpoint / name)
    except OSError as error:
        raise CheckpointError(f"{checkpoint / name}: {error.strerror}") from error
    if sums.get(name) != found:
        raise CheckpointError(
            f"{checkpoint / name}: damaged: its SHA-256 is not that in {SUMS} (which goes, if you "
            "changed the file yourself)"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
