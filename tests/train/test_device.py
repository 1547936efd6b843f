"""The memory of a training process on the CPU."""

import platform
import subprocess
import sys

import pytest

MIB_AFTER_FREEING = """
import torch
from clq_train.device import keep_freed_memory
{first}
tensor = torch.ones(64 << 20)
del tensor
pages = int(open("/proc/self/statm").read().split()[1])
print(pages * 4096 >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_the_memory_of_freed_tensors_is_kept_only_when_asked_for():
    def resident_mib(first):
        command = [sys.executable, "-c", MIB_AFTER_FREEING.format(first=first)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    kept, given_back = resident_mib("keep_freed_memory()"), resident_mib("")
    assert kept - given_back > 200  # of the tensor's 256
