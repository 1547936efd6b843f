"""Computes the losses of a dump again, and finds where what is not finite arises."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clq_train.checkpoint import CONFIG, WEIGHTS
from clq_train.clq import Assigned, Objects
from clq_train.config import load_config
from clq_train.detector import ClqDetector
from clq_train.device import autocast, open_device
from clq_train.errors import CheckpointError
from clq_train.nonfinite import read_dump
from clq_train.trainer import in_training

SHOWN = 3


def replay(dump: Path, overrides: list[str]) -> Iterator[str]:
    """Lines for a person: the losses of each batch, the first module whose output is not finite
    though its input is, and the parameters whose gradient is not.

    overrides  of the dump's configuration, such as run.device=cpu and run.autocast=off

    Raises CheckpointError for a folder that is no dump, ConfigError for a device that is not there.
    """
    config = load_config(dump / CONFIG, overrides)
    batches, positives = read_dump(dump)
    place = open_device(config.run.device)
    model = ClqDetector(config.model, len(config.data.classes))
    try:
        model.load_state_dict(load_file(dump / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{dump / WEIGHTS}: {error}") from error
    in_training(model, place, config.schedule)
    bad = [name for name, value in model.named_parameters() if not _finite(value)]
    if bad:
        yield f"weights that are not finite: {_some(bad)}"
    culprits: list[str] = []
    for name, module in model.named_children():
        _watch(name, module, culprits)
    for number, batch in enumerate(batches):
        culprits.clear()
        images = batch.images.to(place)
        objects = [Objects(o.boxes.to(place), o.labels.to(place)) for o in batch.objects]
        divisor = torch.tensor(positives, device=place)
        assigned = Assigned(model.assign(images, objects).matches, divisor)
        model.zero_grad()
        with autocast(config.run.autocast, place):
            losses = model.losses(images, objects, assigned)
        del losses["positives"]
        sum(losses.values()).backward()
        said = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
        yield f"batch {number}: {said}; images {', '.join(batch.paths)}"
        if culprits:  # modules end after what is in them: the first one is the innermost
            yield f"  the first output that is not finite is that of {culprits[0]}"
        bad = [
            name
            for name, value in model.named_parameters()
            if value.grad is not None and not _finite(value.grad)
        ]
        if bad:
            yield f"  the gradient is not finite in {_some(bad)}"


def _some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _watch(name: str, module: nn.Module, culprits: list[str]) -> None:
    """Notes this module or one in it when its output is not finite and its input is."""

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if _finite(inputs) and not _finite(output):
            culprits.append(f"{name} ({type(module).__name__})")

    module.register_forward_hook(look)
    for child, inner in module.named_children():
        _watch(f"{name}.{child}", inner, culprits)


def _finite(value: Any) -> bool:
    """Of a tensor, or of all in a list or tuple."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return not isinstance(value, list | tuple) or all(_finite(part) for part in value)
