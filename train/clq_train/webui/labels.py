"""Findings of a page to annotations of its picture: one box a thing, nothing that nobody sees."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from clq_train.webui.browser import Finding, Shot

CLASSES = (
    "button", "link", "text_input", "select", "checkbox", "radio", "switch", "slider", "image",
    "icon", "heading", "text", "table", "badge",
)  # fmt: skip
CLASS_OF = {"nav_item": "link", "progress": "slider", "chart": "image", "video": "image"}
SMALLEST_PX = 5.0
# Least difference of the lightest and the darkest of 256 grey levels in a box that can be seen.
TEXT_LEVELS, PICTURE_LEVELS, CONTROL_LEVELS = 18, 10, 8
TEXTS = {"icon", "text", "link", "nav_item", "heading", "badge"}
PICTURES = {"image", "chart", "video"}
CONTROLS = {"button", "text_input", "select", "checkbox", "radio", "switch"}
FIELDS = {"text_input", "select"}
ONE_THING = CONTROLS | PICTURES | {"icon", "badge", "heading", "progress", "slider"}

Rect = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Label:
    """fine: what the rules call it; rect: x0 y0 x1 y1 in pixels of the picture."""

    fine: str
    rect: Rect

    @property
    def name(self) -> str:
        """One of CLASSES."""
        return CLASS_OF.get(self.fine, self.fine)


def label_shot(shot: Shot, scale: float) -> tuple[Image.Image, list[Label]]:
    """The picture and its annotations. Frames, which nobody looked into, are painted over."""
    image = Image.open(io.BytesIO(shot.png)).convert("RGB")
    grey = np.asarray(image.convert("L")).astype(np.int16)
    labels = []
    for finding in without_repeats(shot.findings):
        rect = _in_pixels(finding.rect, scale, image)
        if rect is not None and _can_be_seen(grey, finding.fine, rect):
            labels.append(Label(finding.fine, rect))
    for rect in shot.foreign:
        labels = _paint_over(image, rect, scale, labels)
    return image, labels


def without_repeats(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for each thing: the outer of two that say the same, large before small."""
    kept: list[Finding] = []

    # A field is drawn like a button by some libraries: where the rules found both, it is the field.
    def order(finding: Finding) -> tuple[bool, bool, bool, float]:
        fine = finding.fine
        return fine == "icon", fine not in FIELDS, fine == "text", -_area(finding.rect)

    for finding in sorted(findings, key=order):
        if not any(_says_the_same(outer, finding) for outer in kept):
            kept.append(finding)
    return kept


def _says_the_same(outer: Finding, inner: Finding) -> bool:
    """Whether `inner`, the smaller, has nothing to add to `outer`."""
    shared = overlap(outer.rect, inner.rect)
    if shared == 0:
        return False
    iou = shared / (_area(outer.rect) + _area(inner.rect) - shared)
    inside = shared / min(_area(outer.rect), _area(inner.rect))
    one, other = outer.fine, inner.fine
    if one == other:
        return iou > 0.85 or (inside > 0.9 and one in ONE_THING) or (inside > 0.95 and iou > 0.5)
    if other == "button" and one in FIELDS:
        return iou > 0.6
    if other == "text" and one in ("link", "nav_item"):
        return iou > 0.8
    if other == "text" and one in ("heading", "badge", "button", "text_input", "select"):
        return inside > 0.9 and (one != "heading" or iou > 0.5)
    if other == "icon" and one in ("image", "checkbox", "radio", "switch"):
        return iou > 0.6
    if other == "badge" and one == "slider":
        return inside > 0.9  # its knob, with the value on it
    if other == "icon" and one == "button":
        return iou > 0.8
    return other == "icon" and one == "select" and inside > 0.9  # its own arrow


def overlap(one: Rect, other: Rect) -> float:
    """Area that two rectangles share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _area(rect: Rect) -> float:
    return (rect[2] - rect[0]) * (rect[3] - rect[1])


def _in_pixels(rect: Rect, scale: float, image: Image.Image) -> Rect | None:
    x0, y0 = max(0.0, rect[0] * scale), max(0.0, rect[1] * scale)
    x1, y1 = min(image.width, rect[2] * scale), min(image.height, rect[3] * scale)
    if x1 - x0 < SMALLEST_PX or y1 - y0 < SMALLEST_PX:
        return None
    return round(x0, 1), round(y0, 1), round(x1, 1), round(y1, 1)


def _can_be_seen(grey: np.ndarray, fine: str, rect: Rect) -> bool:
    if fine in TEXTS:
        return _levels(grey, rect, 0) >= TEXT_LEVELS
    if fine in PICTURES:
        return _levels(grey, rect, 0) >= PICTURE_LEVELS
    return fine not in CONTROLS or _levels(grey, rect, 2) >= CONTROL_LEVELS


def _levels(grey: np.ndarray, rect: Rect, margin: int) -> int:
    x0, y0 = max(0, int(rect[0]) - margin), max(0, int(rect[1]) - margin)
    crop = grey[y0 : int(np.ceil(rect[3])) + margin, x0 : int(np.ceil(rect[2])) + margin]
    return int(crop.max()) - int(crop.min())


def _paint_over(image: Image.Image, rect: Rect, scale: float, labels: list[Label]) -> list[Label]:
    x0, y0, x1, y1 = (round(v * scale) for v in rect)
    x0, y0, x1, y1 = max(0, x0), max(0, y0), min(image.width, x1), min(image.height, y1)
    if x1 - x0 < 20 or y1 - y0 < 20:
        return labels
    beside = image.getpixel((max(0, x0 - 3), min(image.height - 1, (y0 + y1) // 2)))
    image.paste(beside, (x0, y0, x1, y1))
    hole = (x0, y0, x1, y1)
    return [o for o in labels if overlap(o.rect, hole) < 0.9 * _area(o.rect)]
