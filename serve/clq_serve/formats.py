"""The answer in each format: which one a request asks for, and how its bytes are made.

An answer is made without the id of its request, so that the same bytes can answer another one.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from clq_serve.bundle import Manifest
from clq_serve.detector import Detections
from clq_serve.errors import BadParameter, NotAcceptable
from clq_serve.loading import LoadedModel
from clq_serve.service import Outcome


class Format(StrEnum):
    """What an answer may be."""

    JSON = "json"
    COCO = "coco"
    YOLO = "yolo"
    IMAGE = "image"


class BoxFormat(StrEnum):
    """The four numbers of a box; norm is xyxy as fractions of the image's width and height."""

    XYXY = "xyxy"
    XYWH = "xywh"
    CXCYWH = "cxcywh"
    NORM = "norm"


IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp")
MEDIA_TYPES = {
    Format.JSON: ("application/json",),
    Format.COCO: ("application/json",),
    Format.YOLO: ("text/plain",),
    Format.IMAGE: IMAGE_TYPES,
}


@dataclass(frozen=True, slots=True)
class Rendering:
    """A format and its media type."""

    format: Format
    media_type: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """A complete answer, but for the id of the request.

    data        the body; with takes_id, a JSON object without its "{" and its first member
    takes_id    whether that first member is the id
    detections  how many objects it is about
    """

    media_type: str
    data: bytes
    takes_id: bool
    detections: int

    def body(self, request_id: str) -> bytes:
        """The whole body."""
        if not self.takes_id:
            return self.data
        # An id has nothing to escape: request_log.py lets no other pass.
        return b'{"id":"' + request_id.encode() + b'",' + self.data

    def item(self, request_id: str) -> bytes:
        """The same as one item of a list of answers."""
        return b'{"ok":true,' + self.body(request_id)[1:]


def negotiate(accept: str | None, wanted: Format | None) -> Rendering:
    """What to answer: the option `format`, where given, and the header Accept, if any.

    Raises NotAcceptable if no media type is left.
    """
    formats = (Format.JSON, Format.IMAGE, Format.YOLO) if wanted is None else (wanted,)
    offers = [Rendering(f, media_type) for f in formats for media_type in MEDIA_TYPES[f]]
    if accept is None or accept.strip() in ("", "*/*"):
        return offers[0]
    ranges = _ranges(accept)
    best = max(offers, key=lambda offer: _quality(ranges, offer.media_type))  # the first of equals
    if _quality(ranges, best.media_type) > 0:
        return best
    accepted = [offer.media_type for offer in offers]
    raise NotAcceptable(
        f"Accept is {accept[:200]!r}; there are: {', '.join(accepted)}",
        extra={"accepted": accepted},
    )


def image_id_of(given: str | None, file_name: str) -> int | str:
    """The image_id of COCO results; a number where it is written as one.  Raises BadParameter."""
    image_id = given if given is not None else PurePath(file_name.replace("\\", "/")).stem[:200]
    if not image_id:
        raise BadParameter(
            "format=coco needs image_id, or a form with the name of the file",
            extra={"parameter": "image_id"},
        )
    number = image_id.isascii() and image_id.isdecimal() and len(image_id) <= 18
    return int(image_id) if number else image_id


def encode_json(model: LoadedModel, outcome: Outcome, boxes: BoxFormat) -> Encoded:
    """The answer of the format json: a DetectAnswer of responses.py.

    Dicts and the C encoder take half the time of building and dumping the pydantic models; a test
    holds the two equal.
    """
    manifest = model.bundle.manifest
    names = manifest.class_names
    found = outcome.detections
    tree = {
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "digest": model.bundle.digest,
        },
        "image": {
            "width": outcome.width,
            "height": outcome.height,
            "orientation_applied": outcome.orientation_applied,
            "format": outcome.format,
            "sha256": outcome.sha256,
        },
        "box_format": str(boxes),
        "detections": [
            {
                "box": box,
                "score": score,
                "class_id": label,
                "label": names[label],
                "quality": quality,
                "cls_score": cls_score,
            }
            for box, score, label, quality, cls_score in zip(
                _boxes(found, outcome, boxes).tolist(),
                _rounded(found.scores, 6).tolist(),
                found.labels.tolist(),
                _rounded(found.qualities, 6).tolist(),
                _rounded(found.cls_scores, 6).tolist(),
                strict=True,
            )
        ],
        "timing_ms": outcome.timing.model_dump(),
    }
    text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Encoded("application/json", text.encode()[1:], True, len(found.scores))


def encode_coco(manifest: Manifest, outcome: Outcome, image_id: int | str) -> Encoded:
    """The answer of the format coco: a list of results as COCO's evaluation reads it."""
    found = outcome.detections
    ids = [entry.category_id for entry in manifest.classes]
    results = [
        {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score}
        for label, box, score in zip(
            found.labels.tolist(),
            _boxes(found, outcome, BoxFormat.XYWH).tolist(),
            _rounded(found.scores, 6).tolist(),
            strict=True,
        )
    ]
    text = json.dumps(results, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Encoded("application/json", text.encode(), False, len(results))


def encode_yolo(outcome: Outcome) -> Encoded:
    """The answer of the format yolo: a line `class_id cx cy w h score` each, parts of the image."""
    found = outcome.detections
    size = (outcome.width, outcome.height, outcome.width, outcome.height)
    parts = _boxes(found, outcome, BoxFormat.CXCYWH) / size
    lines = [
        f"{label} {cx:.6f} {cy:.6f} {w:.6f} {h:.6f} {score:.6f}\n"
        for label, (cx, cy, w, h), score in zip(
            found.labels.tolist(), parts.tolist(), found.scores.tolist(), strict=True
        )
    ]
    return Encoded("text/plain; charset=utf-8", "".join(lines).encode(), False, len(lines))


def _boxes(found: Detections, outcome: Outcome, wanted: BoxFormat) -> NDArray[np.float64]:
    """The boxes, (D, 4), rounded to 1/1000 pixel or, of the whole, to a millionth."""
    boxes = found.boxes.astype(np.float64)
    if wanted is BoxFormat.NORM:
        return _rounded(boxes / (outcome.width, outcome.height, outcome.width, outcome.height), 6)
    if wanted is not BoxFormat.XYXY:
        sides = boxes[:, 2:] - boxes[:, :2]
        start = boxes[:, :2] if wanted is BoxFormat.XYWH else boxes[:, :2] + sides / 2
        boxes = np.concatenate([start, sides], axis=1)
    return _rounded(boxes, 3)


def _rounded(values: NDArray[np.floating], digits: int) -> NDArray[np.float64]:
    return values.astype(np.float64).round(digits)


def _ranges(accept: str) -> list[tuple[str, float]]:
    """(media range, quality) of an Accept header; RFC 9110, 12.5.1.  Damaged parts count as 0."""
    ranges = []
    for item in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        ranges.append((media_range, quality))
    return ranges


def _quality(ranges: list[tuple[str, float]], media_type: str) -> float:
    """How much a media type is wanted, by the most specific range that names it; 0 = not."""
    for name in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        for media_range, quality in ranges:
            if media_range == name:
                return quality
    return 0.0
