"""Reads torchvision's ImageNet weights into a backbone."""

import torch
from safetensors.torch import load_file

from clq_train.config import BackboneConfig
from clq_train.detector import ClqDetector
from clq_train.errors import CheckpointError


def load_backbone(model: ClqDetector, config: BackboneConfig) -> None:
    """Reads torchvision's ImageNet weights into the backbone, if the configuration names a file.

    Only tensors are read (safetensors, or torch.load with weights_only). Raises CheckpointError
    for a tensor that is missing or of another shape; the classifier's are left out.
    """
    if config.weights is None:
        return
    try:
        if config.weights.suffix == ".safetensors":
            weights = load_file(config.weights)
        else:
            weights = torch.load(config.weights, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{config.weights}: {error.strerror}") from error
    names = {"conv1": "stages.0.0", "bn1": "stages.0.1"}
    names |= {f"layer{i}": f"stages.{i}" for i in range(1, 5)}
    renamed = {}
    for name, value in weights.items():
        top, _, rest = name.partition(".")
        if top in names:
            renamed[f"{names[top]}.{rest}"] = value
    own = set(model.backbone.state_dict())
    missing = {n for n in own - set(renamed) if not n.endswith("num_batches_tracked")}
    if missing:
        raise CheckpointError(f"{config.weights}: no tensor for {sorted(missing)[:5]} and others")
    try:
        model.backbone.load_state_dict({k: v for k, v in renamed.items() if k in own}, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{config.weights}: {error}") from error
