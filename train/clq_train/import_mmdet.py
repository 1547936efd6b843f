"""Checkpoints of MMDetection 2.x and 3.x: ATSS, and heads derived from it.

The tensors have other names. What names don't say is read from the configuration that MMDetection
writes into the file:

pixels   the detector takes RGB, less ImageNet's mean, divided by its deviation. A first convolution
         that was trained on B, G, R or on another deviation is converted exactly; one trained with
         another mean is refused, and so is a backbone of style `caffe`, which has its strides in
         other convolutions
anchors  whether octave_base_scale is model.head.anchor_scale
"""

import ast
import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from clq_train.config import HeadConfig
from clq_train.detector import PIXEL_MEAN, PIXEL_STD
from clq_train.errors import CheckpointError
from clq_train.import_pickle import read_pickle
from clq_train.import_report import Foreign

Channels = Literal["rgb", "bgr"]

NAMES = [
    (r"backbone\.conv1\.(.+)", r"backbone.stages.0.0.\1"),
    (r"backbone\.bn1\.(.+)", r"backbone.stages.0.1.\1"),
    (r"backbone\.layer(\d)\.(.+)", r"backbone.stages.\1.\2"),
    (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"neck.lateral.\1.\2"),
    (r"neck\.fpn_convs\.([012])\.conv\.(.+)", r"neck.output.\1.\2"),
    (r"neck\.fpn_convs\.3\.conv\.(.+)", r"neck.extra.0.\1"),
    (r"neck\.fpn_convs\.4\.conv\.(.+)", r"neck.extra.1.\1"),
    (r"bbox_head\.(cls|reg)_convs\.(\d+)\.conv\.(.+)", r"head.\1_tower.convs.\2.\3"),
    (r"bbox_head\.(cls|reg)_convs\.(\d+)\.gn\.(.+)", r"head.\1_tower.norms.\2.norm.\3"),
    (r"bbox_head\.atss_(cls|reg)\.(.+)", r"head.\1.\2"),
    (r"bbox_head\.atss_centerness\.(.+)", r"head.quality.\1"),
]
CENTERNESS = "bbox_head.atss_centerness"
SCALE = re.compile(r"bbox_head\.scales\.(\d)\.scale")
FIRST = "backbone.stages.0.0.weight"
FACTS = ("style", "to_rgb", "bgr_to_rgb", "mean", "std", "octave_base_scale")


def read_mmdet(
    path: Path, head: HeadConfig, channels: Channels | None, renames: Mapping[str, str]
) -> Foreign:
    """The tensors of the checkpoint at `path`.

    head      of the detector that they are for
    channels  the order that the first convolution was trained on, for a file that does not say
    renames   module there -> module of the detector, for branches that ATSS does not have

    Raises CheckpointError for a file that is no such checkpoint, wants more than tensors and plain
    values, or whose backbone the detector can't compute.
    """
    tree = read_pickle(path)
    tensors, meta = tree.get("state_dict", tree), tree.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    facts = _facts(meta)
    mapped: dict[str, tuple[str, Tensor]] = {}
    left: dict[str, str] = {}
    scales: dict[int, Tensor] = {}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            left[name] = "not a tensor"
        elif name.startswith("neck.") and "neck.lateral_convs.3.conv.weight" in tensors:
            left[name] = "its pyramid starts at stride 4, the detector's at 8"
        elif scale := SCALE.fullmatch(name):
            scales[int(scale[1])] = value
        else:
            own = _own_name(name, renames)
            if own is None:
                left[name] = "no counterpart in the detector; --map names one"
            elif own in mapped:
                left[name] = f"{mapped[own][0]} is {own} already"
            elif name.startswith(CENTERNESS) and head.lqe and CENTERNESS not in renames:
                left[name] = "predicts centerness; the branch of model.head.lqe predicts the IoU"
            else:
                mapped[own] = name, value
    if scales:
        ordered = torch.stack([scales[level] for level in sorted(scales)])
        mapped["head.scales"] = "bbox_head.scales", ordered
    notes = []
    if FIRST in mapped:
        source, weight = mapped[FIRST]
        weight, note = _first_convolution(path, weight, facts, channels)
        mapped[FIRST] = source, weight
        notes.append(note)
    theirs = set(facts["octave_base_scale"])
    if theirs and theirs != {head.anchor_scale}:
        text = " and ".join(map(str, theirs))
        notes.append(
            f"its anchors are {text} strides wide, model.head.anchor_scale is {head.anchor_scale:g}"
        )
    return Foreign(mapped, left, _classes(meta), notes)


def _own_name(name: str, renames: Mapping[str, str]) -> str | None:
    for module, own in renames.items():
        if f"{name}.".startswith(f"{module}."):
            return own + name.removeprefix(module)
    for pattern, replacement in NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return None


def _first_convolution(
    path: Path, weight: Tensor, facts: dict[str, list[Any]], channels: Channels | None
) -> tuple[Tensor, str]:
    """The weight (O, 3, 7, 7) for the detector's pixels, and what was done to it."""
    if "caffe" in facts["style"]:
        raise CheckpointError(
            f"{path}: its backbone is of style 'caffe', whose strides are in the 1x1 convolutions; "
            "the detector's are those of style 'pytorch'"
        )
    said = {"rgb" if value else "bgr" for value in facts["to_rgb"] + facts["bgr_to_rgb"]}
    orders = said | {channels} - {None}
    if len(orders) != 1:
        text = "says " + " and ".join(sorted(said)).upper() if said else "does not say"
        raise CheckpointError(
            f"{path}: {text} which order its pixels' channels have; --channels "
            + (f"says {channels.upper()}" if channels else "can")
        )
    bgr = orders == {"bgr"}
    mean, std = (torch.tensor(v[::-1] if bgr else v) for v in (PIXEL_MEAN, PIXEL_STD))
    theirs = [torch.tensor(v) for v in facts["std"]] or [std]
    for name, ours, others in (("mean", mean, facts["mean"]), ("std", theirs[0], facts["std"])):
        for other in others:
            if not torch.allclose(torch.tensor(other), ours, atol=0.01):
                raise CheckpointError(
                    f"{path}: normalises its pixels by {name} {other}; accepted: {ours.tolist()}"
                )
    note = f"its pixels are {'BGR: the first convolution is turned to RGB' if bgr else 'RGB'}"
    if not torch.equal(theirs[0], std):
        weight = weight * (std / theirs[0]).view(1, 3, 1, 1)
        note += f"; scaled from a deviation of {theirs[0].tolist()}"
    return weight.flip(1) if bgr else weight, note


def _facts(meta: dict[str, Any]) -> dict[str, list[Any]]:
    """Every value that the checkpoint's own configuration gives the keywords FACTS."""
    found: dict[str, list[Any]] = {name: [] for name in FACTS}
    text = meta.get("cfg", meta.get("config"))  # 3.x, 2.x
    try:
        nodes = list(ast.walk(ast.parse(text))) if isinstance(text, str) else []
    except SyntaxError:
        nodes = []
    for node in nodes:
        if isinstance(node, ast.keyword) and node.arg in found:
            with contextlib.suppress(ValueError):  # a name or a call, not a value
                found[node.arg].append(ast.literal_eval(node.value))
    for name in ("mean", "std"):  # of pixels, not of an initialisation
        found[name] = [v for v in found[name] if isinstance(v, list | tuple) and len(v) == 3]
    return found


def _classes(meta: dict[str, Any]) -> list[str] | None:
    """The class names, where the checkpoint has them."""
    dataset = meta.get("dataset_meta", meta)  # 3.x, 2.x
    names = dataset.get("classes", dataset.get("CLASSES")) if isinstance(dataset, dict) else None
    return list(names) if isinstance(names, list | tuple) else None
