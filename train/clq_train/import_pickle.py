"""PyTorch's own files (.pth, .pt) read without running anything that they hold."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals

from clq_train.errors import CheckpointError

# What MMEngine's and MMCV's checkpoints keep beside their tensors: histories of losses and numpy
# scalars. Nobody reads them here, so each stands for an object that holds nothing.
UNREAD = [
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",  # of HistoryBuffer's methods
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{n}"
        for core in ("core", "_core")
        for n in ("_reconstruct", "scalar")
    ),
]


class Unread:
    """Stands for an object of a class or function in UNREAD, whatever it was made from."""

    def __new__(cls, *args: object) -> "Unread":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def read_pickle(path: Path) -> dict[str, Any]:
    """The mapping that torch.save wrote: tensors and plain values, Unread for what UNREAD names.

    Raises CheckpointError naming the file, and the class or function that it wants if that is
    neither of torch's tensors nor in UNREAD.
    """
    try:
        with safe_globals([(Unread, name) for name in UNREAD]):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if wanted := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path}: its pickle wants {wanted[1]}, and only tensors and plain values "
                "are read; save its state_dict alone where it was made"
            ) from error
        raise CheckpointError(f"{path}: no file of torch.save, or a damaged one") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: no file of torch.save, or a damaged one: {error}"
        ) from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: holds a {type(tree).__name__}, not a mapping of tensors")
    return tree
