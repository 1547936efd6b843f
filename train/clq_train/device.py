"""The device of a run, checked before anything is moved there."""

import ctypes
import platform

import torch

from clq_train.errors import ConfigError
from clq_train.processes import Processes

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)


def open_device(name: str) -> torch.device:
    """The torch device of a name such as `cpu`, `cuda` or `cuda:1`.

    Raises ConfigError for another name and for a GPU that is not there; a run that asked for a GPU
    never goes on without one.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"run.device: {name!r} is no device; accepted: cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= gpu_count():
        raise ConfigError(f"run.device: {name!r} is not there; CUDA GPUs found: {gpu_count()}")
    return device


def open_own_device(name: str, processes: Processes) -> torch.device:
    """The device of one of several processes: `cuda` is the GPU of its own number on this host.

    Raises ConfigError as open_device does, and for more processes than GPUs.
    """
    if processes.count == 1 or name == "cpu":
        return open_device(name)
    if name != "cuda":
        raise ConfigError(
            f"run.device: {name!r} with {processes.count} processes; accepted: cpu, cuda"
        )
    open_device(name)
    if processes.local_count > gpu_count():
        raise ConfigError(
            f"run.device: {processes.local_count} processes on this machine, one GPU each; "
            f"CUDA GPUs found: {gpu_count()}"
        )
    torch.cuda.set_device(processes.local_rank)
    return open_device(f"cuda:{processes.local_rank}")


def check_precision(autocast: str, device: torch.device) -> None:
    """Raises ConfigError for an autocast type that the GPU has no arithmetic for.

    The CPU computes in both, slowly where it has no instructions for it.
    """
    if device.type != "cuda" or autocast != "bfloat16":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"run.autocast: {torch.cuda.get_device_name(device)} has no bfloat16 arithmetic; "
            "accepted there: float16, off"
        )


def autocast(name: str, device: torch.device) -> torch.autocast:
    """The context in which a run of `run.autocast` computes on the device."""
    dtype = AUTOCAST.get(name)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def gpu_count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def keep_freed_memory() -> None:
    """Lets the memory of freed tensors stay with this process, for the tensors of the next step.

    glibc gives large ones back to the system, which clears every page of the next one: up to a
    fifth of a training step on the CPU. Does nothing with another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
