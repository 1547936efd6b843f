"""The folder of a run: who may write there, and from what the run goes on."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clq_train.checkpoint import list_checkpoints
from clq_train.errors import ConfigError


def find_start(run: Path, resume: bool) -> Path | None:
    """The checkpoint that the run goes on from, None for a new run.

    Raises ConfigError for a folder with checkpoints that was not asked to be resumed.
    """
    existing = list_checkpoints(run)
    if existing and not resume:
        raise ConfigError(f"{run}: holds checkpoints already; give --resume or another --out")
    return existing[-1] if existing else None


@contextmanager
def opened(run: Path) -> Iterator[None]:
    """Makes the folder, keeps other runs out of it and clears what a killed run left half-written.

    Raises ConfigError if another process is writing there, or nobody can.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"{run}: can't be written to: {error.strerror}") from error
    with lock:
        try:
            # Not flock: workers would inherit it, and hold it after their parent was killed.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{run}: another process trains there") from error
        for partial in run.glob("*.tmp"):
            if partial.is_dir() and not partial.is_symlink():
                shutil.rmtree(partial)
        yield
