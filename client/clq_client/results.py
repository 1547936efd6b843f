"""What the service answers, as values.  Boxes: x1 y1 x2 y2, pixels of the upright image.

Parsing is strict about every member that the interface names: present, of its type, finite, in its
range.  Members it does not name are ignored, so that a newer service can add some.
"""

import re
from dataclasses import asdict, dataclass

from clq_client.errors import UnexpectedAnswer

_MOST = 1e15  # no pixel, score or time is more; keeps inf and huge integers out


@dataclass(frozen=True, slots=True)
class Detection:
    """One object.

    box        (x1, y1, x2, y2), pixels of the upright image, inside it
    score      in [0, 1], what the detections are sorted by
    label      name of the class
    class_id   index of the class in the model, >= 0
    quality    in [0, 1], how well the box fits; 1 where the model does not tell
    cls_score  in [0, 1], how sure the class is
    """

    box: tuple[float, float, float, float]
    score: float
    label: str
    class_id: int
    quality: float
    cls_score: float


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model answered; digest = "sha256:" + 64 hex digits of its file."""

    name: str
    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class Label:
    """A class of a model; category_id is its number in the data set, as COCO files have it."""

    class_id: int
    label: str
    category_id: int


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """The image as the service saw it.

    width, height        pixels of the upright image
    orientation_applied  whether EXIF asked for a turn
    format               e.g. "PNG"
    sha256               64 hex digits, of the bytes that were sent
    """

    width: int
    height: int
    orientation_applied: bool
    format: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time went in the service, milliseconds; batch_size images shared the engine."""

    decode: float
    queue: float
    infer: float
    post: float
    total: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class DetectResult:
    """The answer for one image; `id` is the request id, detections by descending score."""

    id: str
    model: ModelInfo
    image: ImageInfo
    detections: tuple[Detection, ...]
    timing_ms: Timing

    @classmethod
    def from_json(cls, value: object) -> "DetectResult":
        """The result in a decoded JSON answer.

        Raises UnexpectedAnswer, which names the member, its value and what is accepted.
        """
        fields = Fields(value, "")
        image = _image(fields.child("image"))
        found = tuple(_detection(item, image) for item in fields.children("detections"))
        for i in range(1, len(found)):
            if found[i].score > found[i - 1].score:
                raise UnexpectedAnswer(
                    f"answer: detections[{i}].score: {found[i].score!r} is more than the one"
                    " before; accepted: sorted by descending score"
                )
        return cls(
            id=fields.text("id"),
            model=model_info(fields.child("model")),
            image=image,
            detections=found,
            timing_ms=_timing(fields.child("timing_ms")),
        )

    def to_dict(self) -> dict[str, object]:
        """The result as the JSON of the interface."""
        value = asdict(self)
        value["detections"] = [d | {"box": list(d["box"])} for d in value["detections"]]
        return value


class Fields:
    """A JSON object of an answer, read member by member; `where` is its place in the answer."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise _refusal(where, value, "an object")
        self._members: dict[str, object] = value
        self._where = where

    def _get(self, key: str) -> tuple[str, object]:
        where = f"{self._where}.{key}" if self._where else key
        if key not in self._members:
            raise UnexpectedAnswer(f"answer: {where}: missing")
        return where, self._members[key]

    def child(self, key: str) -> "Fields":
        where, value = self._get(key)
        return Fields(value, where)

    def items(self, key: str) -> list[tuple[str, object]]:
        """The members of the list `key`, each with its place."""
        where, value = self._get(key)
        if not isinstance(value, list):
            raise _refusal(where, value, "a list")
        return [(f"{where}[{i}]", item) for i, item in enumerate(value)]

    def children(self, key: str) -> "list[Fields]":
        return [Fields(item, where) for where, item in self.items(key)]

    def text(self, key: str) -> str:
        return text(*self._get(key))

    def flag(self, key: str) -> bool:
        where, value = self._get(key)
        if not isinstance(value, bool):
            raise _refusal(where, value, "true or false")
        return value

    def whole(self, key: str, *, least: int) -> int:
        where, value = self._get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise _refusal(where, value, f"a whole number >= {least}")
        return value

    def number(self, key: str, *, low: float = 0.0, high: float = _MOST) -> float:
        where, value = self._get(key)
        return _number(where, value, low, high)

    def sha256(self, key: str, *, prefix: str = "") -> str:
        where, value = self._get(key)
        if isinstance(value, str) and re.fullmatch(prefix + "[0-9a-f]{64}", value):
            return value
        raise _refusal(where, value, f"{prefix!r} + 64 hex digits" if prefix else "64 hex digits")

    def box(self, key: str, *, width: int, height: int) -> tuple[float, float, float, float]:
        sides = self.items(key)
        if len(sides) != 4:
            raise _refusal(self._get(key)[0], self._get(key)[1], "x1 y1 x2 y2")
        x1 = _number(*sides[0], 0, width)
        y1 = _number(*sides[1], 0, height)
        x2 = _number(*sides[2], x1, width)
        y2 = _number(*sides[3], y1, height)
        return x1, y1, x2, y2


def text(where: str, value: object) -> str:
    """`value` as a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise _refusal(where, value, "a string that is not empty")
    return value


def model_info(fields: Fields) -> ModelInfo:
    """The name, version and digest of a model."""
    return ModelInfo(
        name=fields.text("name"),
        version=fields.whole("version", least=1),
        digest=fields.sha256("digest", prefix="sha256:"),
    )


def _image(fields: Fields) -> ImageInfo:
    return ImageInfo(
        width=fields.whole("width", least=1),
        height=fields.whole("height", least=1),
        orientation_applied=fields.flag("orientation_applied"),
        format=fields.text("format"),
        sha256=fields.sha256("sha256"),
    )


def _detection(fields: Fields, image: ImageInfo) -> Detection:
    return Detection(
        box=fields.box("box", width=image.width, height=image.height),
        score=fields.number("score", high=1),
        label=fields.text("label"),
        class_id=fields.whole("class_id", least=0),
        quality=fields.number("quality", high=1),
        cls_score=fields.number("cls_score", high=1),
    )


def _timing(fields: Fields) -> Timing:
    return Timing(
        decode=fields.number("decode"),
        queue=fields.number("queue"),
        infer=fields.number("infer"),
        post=fields.number("post"),
        total=fields.number("total"),
        batch_size=fields.whole("batch_size", least=1),
    )


def _number(where: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refusal(where, value, "a number")
    if low <= value <= min(high, _MOST):  # false for NaN
        return float(value)
    raise _refusal(where, value, f"a finite number in [{low:g}, {high:g}]")


def _refusal(where: str, value: object, accepted: str) -> UnexpectedAnswer:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return UnexpectedAnswer(f"answer: {where or 'top level'}: {shown} is not {accepted}")
