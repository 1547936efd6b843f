"""Packages of a peer in a folder of their own, not in the environment of the benchmarks."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def install(folder: Path, packages: Sequence[str]) -> None:
    """Whole or not there, so that a broken-off installation is begun again.

    packages  without their dependencies, which would bring another torch and numpy
    """
    beside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*command, "--target", str(beside), *packages], check=True)
    beside.rename(folder)
