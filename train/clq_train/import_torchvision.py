"""ImageNet weights of torchvision's classifiers, for the backbone."""

import re
from pathlib import Path
from urllib.error import URLError

from torch import Tensor
from torchvision.models import get_model_weights

from clq_train.detector import ClqDetector
from clq_train.errors import CheckpointError
from clq_train.import_pickle import read_pickle
from clq_train.import_report import Foreign
from clq_train.init_weights import COUNTER, misfit, read_safetensors

NAMES = [
    (r"conv1\.(.+)", r"backbone.stages.0.0.\1"),  # ResNet
    (r"bn1\.(.+)", r"backbone.stages.0.1.\1"),
    (r"layer(\d)\.(.+)", r"backbone.stages.\1.\2"),
    (r"stem\.(.+)", r"backbone.stages.0.\1"),  # RegNet
    (r"trunk_output\.block(\d)\.(.+)", r"backbone.stages.\1.\2"),
]
EDITION = "IMAGENET1K_V1"  # the one that detection papers start from; every backbone here has it


def read_torchvision(path: Path | None, model: ClqDetector) -> Foreign:
    """The tensors of the classifier whose backbone the detector has.

    path  .safetensors, or a file of torch.save; None downloads torchvision's

    Raises CheckpointError for a file that can't be read or is of another network, and for a
    download that is not to be had.
    """
    backbone = model.config.backbone.name
    if path is None:
        tensors = _download(backbone)
    elif path.suffix == ".safetensors":
        tensors = read_safetensors(path)
    else:
        tensors = read_pickle(path)
    mapped: dict[str, tuple[str, Tensor]] = {}
    left: dict[str, str] = {}
    for name, value in tensors.items():
        for pattern, replacement in NAMES:
            if isinstance(value, Tensor) and re.fullmatch(pattern, name):
                mapped[re.sub(pattern, replacement, name)] = name, value
                break
        else:
            left[name] = "no counterpart in the detector"
    own = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    names = (name for name in [*own, *mapped] if not name.endswith(COUNTER))
    for name in names:
        problem = "not there" if name not in mapped else misfit(own, name, mapped[name][1])
        if problem:
            raise CheckpointError(f"{path}: not the weights of {backbone}: {name}: {problem}")
    return Foreign(mapped, left, None, [])


def _download(backbone: str) -> dict[str, Tensor]:
    try:
        weights = get_model_weights(backbone)[EDITION]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"torchvision has no weights for the backbone {backbone}") from error
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (URLError, OSError, RuntimeError) as error:  # no network, a full disk, a cut file
        raise CheckpointError(
            f"{weights.url}: {error}; download it where there is a network, and give the file"
        ) from error
