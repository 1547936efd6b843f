"""The device of a run, checked before anything is moved there."""

import torch

from clq_train.errors import ConfigError


def open_device(name: str) -> torch.device:
    """The torch device of a name such as `cpu`, `cuda` or `cuda:1`.

    Raises ConfigError for a name that torch does not know and for a GPU that is not there; a run
    that asked for a GPU never goes on without one.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"run.device: {name!r} is no device; accepted: cpu, cuda, cuda:N"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(f"run.device: {name!r} is not there; CUDA GPUs found: {count}")
    return device
