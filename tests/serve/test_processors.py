"""The built-in models on a processor that has AVX2 alone, without 8-bit dot products: in QEMU."""

import platform
import shutil
import subprocess

import pytest
from service_process import COMMAND, environment

from clq_serve.bundle import builtin_bundle_path

EMULATOR = shutil.which("qemu-x86_64")


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine is no x86-64")
@pytest.mark.skipif(EMULATOR is None, reason="there is no qemu-x86_64 (Debian's qemu-user)")
@pytest.mark.parametrize("name", ["webui-nano", "webui-nano-int8"])
def test_a_processor_with_avx2_alone_serves_the_built_in_model(name: str) -> None:
    assert EMULATOR is not None
    done = subprocess.run(
        [EMULATOR, "-cpu", "Haswell-v4", *COMMAND, "check", str(builtin_bundle_path(name))],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert "2 golden examples reproduced" in done.stdout
