"""Where a new bundle is made: beside its final place, and renamed into it when all is well."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clq_export.errors import ExportError


@contextmanager
def new_bundle(out: Path, name: str, version: int) -> Iterator[Path]:
    """The folder to write the bundle NAME/VERSION into; it is in `out` when the block has ended.

    If the block raises, nothing is left behind.  Raises ExportError if the bundle exists already,
    or if `out` cannot be written.
    """
    final = out / name / str(version)
    if final.exists():
        raise ExportError(f"{final}: exists already; give another --version or none")
    beside = out / f".{name}-{version}.tmp"
    # The loader holds folder names against the manifest, so the folder beside has the same two.
    folder = beside / name / str(version)
    try:
        shutil.rmtree(beside, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, final)
    except OSError as err:
        raise ExportError(f"{final}: cannot be written: {err}") from err
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def next_version(folder: Path) -> int:
    """The whole number after the largest version in the folder of a model."""
    found = [int(p.name) for p in folder.glob("*") if re.fullmatch(r"[1-9]\d*", p.name)]
    return max(found, default=0) + 1
