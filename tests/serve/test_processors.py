"""The built-in models on a processor that has AVX2 alone, without 8-bit dot products: in QEMU."""

import os
import platform
import shutil
import subprocess
import sys

import pytest

from clq_serve.bundle import builtin_bundle_path

EMULATOR = shutil.which("qemu-x86_64")
CHECK = """
import sys
from clq_serve.loading import load_model
from clq_serve.settings import Settings
from pathlib import Path
settings = Settings(threads=1, wide_session=False)
print(load_model(settings, Path(sys.argv[1])).golden_examples)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine is no x86-64")
@pytest.mark.skipif(EMULATOR is None, reason="there is no qemu-x86_64 (Debian's qemu-user)")
@pytest.mark.parametrize("name", ["webui-nano", "webui-nano-int8"])
def test_a_processor_with_avx2_alone_serves_the_built_in_model(name: str) -> None:
    assert EMULATOR is not None
    command = [EMULATOR, "-cpu", "Haswell-v4", sys.executable, "-c", CHECK]
    done = subprocess.run(
        [*command, str(builtin_bundle_path(name))],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"
