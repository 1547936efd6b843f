"""The label checker: what in a data set should be looked at.

Overlaps of boxes that exclude each other, boxes in which nothing can be seen, boxes cut to a
sliver by the edge of the picture, boxes of an impossible shape, pictures that are nearly the same
in two splits.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clq_train.webui.labels import CONTROL_LEVELS, overlap
from clq_train.webui.review import images_of
from clq_train.webui.sources import SPLITS

# A box of one class should not lie on a box of the other; each may contain the other's text.
EXCLUSIVE = {"button", "text_input", "select", "checkbox", "radio", "switch", "slider", "badge"}
INSIDE_OTHER = {
    ("badge", "button"),
    ("badge", "text_input"),
    ("badge", "select"),
    ("checkbox", "button"),
}
PARTIAL_OVERLAP = (0.25, 0.9)  # share of the smaller box
SAME_BOX = 0.8  # intersection over union of boxes of two classes
SLIVER_PX = 7
# Width over height: least and most.
ASPECTS = {
    "checkbox": (0.6, 1.7), "radio": (0.6, 1.7), "switch": (0.9, 5), "icon": (0.2, 5),
    "select": (0.8, 60),
    "slider": (0.02, 200), "badge": (0.4, 20), "button": (0.2, 40),
}  # fmt: skip
HASH_PX = 16
SAME_PICTURE_LEVELS = 1.5  # mean difference of grey levels of pictures made small


@dataclass(frozen=True, slots=True)
class Doubt:
    """kind: what is doubtful; boxes: the annotations' ids; fatal: training can't use it."""

    kind: str
    split: str
    family: str
    file: str
    classes: str
    boxes: tuple[int, ...]
    fatal: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def check_dataset(data: Path) -> list[Doubt]:
    doubts: list[Doubt] = []
    small: dict[str, list[tuple[str, str, np.ndarray]]] = {}
    for split in SPLITS:
        small[split] = []
        for image, annotations in images_of(data, split):
            where = split, image["family"], image["file_name"]
            path = data / "images" / image["file_name"]
            if not path.is_file():
                doubts.append(Doubt("no picture", *where, "", (), fatal=True))
                continue
            with Image.open(path) as file:
                grey = file.convert("L")
            doubts += [
                Doubt(kind, *where, names, ids, fatal)
                for kind, names, ids, fatal in check_image(annotations, grey)
            ]
            tiny = np.asarray(grey.resize((HASH_PX, HASH_PX))).astype(np.float32)
            small[split].append((image["family"], image["file_name"], tiny))
    return doubts + _repeated(small)


def check_image(
    annotations: list[dict[str, Any]], grey: Image.Image
) -> list[tuple[str, str, tuple[int, ...], bool]]:
    """(kind, classes, ids, fatal) of what is doubtful in one picture."""
    found: list[tuple[str, str, tuple[int, ...], bool]] = []
    pixels = np.asarray(grey)
    rects = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in annotations)]
    for a, (x0, y0, x1, y1) in zip(annotations, rects, strict=True):
        name, ids = a["name"], (a["id"],)
        if (
            x0 < 0
            or y0 < 0
            or x1 > grey.width + 0.5
            or y1 > grey.height + 0.5
            or x1 <= x0
            or y1 <= y0
        ):
            found.append(("outside", name, ids, True))
            continue
        crop = pixels[max(0, int(y0) - 2) : int(y1) + 3, max(0, int(x0) - 2) : int(x1) + 3]
        if int(crop.max()) - int(crop.min()) < CONTROL_LEVELS:
            found.append(("invisible", name, ids, False))
        at_edge = x0 < 1 or y0 < 1 or x1 > grey.width - 1 or y1 > grey.height - 1
        if at_edge and min(x1 - x0, y1 - y0) < SLIVER_PX:
            found.append(("clipped", name, ids, False))
        least, most = ASPECTS.get(name, (0, 1e9))
        if not at_edge and not least <= (x1 - x0) / (y1 - y0) <= most:
            found.append(("shape", name, ids, False))
    for i, one in enumerate(annotations):
        for j in range(i + 1, len(annotations)):
            shared = overlap(rects[i], rects[j])
            if shared:
                kind = _overlap_kind(one, annotations[j], shared)
                if kind:
                    names = "+".join(sorted((one["name"], annotations[j]["name"])))
                    found.append((kind, names, (one["id"], annotations[j]["id"]), False))
    return found


def _overlap_kind(one: dict[str, Any], other: dict[str, Any], shared: float) -> str | None:
    smaller = min(one["area"], other["area"])
    inside, iou = shared / smaller, shared / (one["area"] + other["area"] - shared)
    a, b = sorted((one["name"], other["name"]))
    if a != b and iou > SAME_BOX:
        return "one thing, two classes"
    if a == b and iou > SAME_BOX:
        return "twice"
    if {a, b} <= EXCLUSIVE and inside > PARTIAL_OVERLAP[0] and (a, b) not in INSIDE_OTHER:
        return "control in control" if inside > PARTIAL_OVERLAP[1] else "overlap"
    return None


def _repeated(small: dict[str, list[tuple[str, str, np.ndarray]]]) -> list[Doubt]:
    """Pictures of val and test that look like one of another split."""
    found = []
    for split, others in (("val", ("train",)), ("test", ("train", "val"))):
        known = [entry for other in others for entry in small[other]]
        if not known or not small[split]:
            continue
        stack = np.stack([tiny for _, _, tiny in known])
        for family, file, tiny in small[split]:
            nearest = float(np.abs(stack - tiny).mean(axis=(1, 2)).min())
            if nearest < SAME_PICTURE_LEVELS and float(tiny.std()) > 4:
                found.append(Doubt("also in another split", split, family, file, "", ()))
    return found


def summary(doubts: list[Doubt]) -> str:
    """Counts by kind and classes, and the families that have most."""
    lines = [f"{len(doubts)} doubts"]
    for (kind, classes), count in Counter((d.kind, d.classes) for d in doubts).most_common(40):
        families = Counter(
            d.family for d in doubts if (d.kind, d.classes) == (kind, classes)
        ).most_common(3)
        example = next(d for d in doubts if (d.kind, d.classes) == (kind, classes))
        shown = ", ".join(f"{name} {n}" for name, n in families)
        lines.append(f"{count:6d}  {kind:24s} {classes:24s} {shown}; e.g. {example.file}")
    return "\n".join(lines)
