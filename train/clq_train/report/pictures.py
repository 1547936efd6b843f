"""The images with the most errors, small, with their boxes drawn over them."""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from clq_serve.preprocess import ImageLimits, decode_image
from clq_train.assess import Assessment, Outcome
from clq_train.coco import Record

LONGER_PX = 900
WEBP_QUALITY = 60
WHITE = (255, 255, 255)


def worst_pictures(
    found: Assessment, records: Sequence[Record], count: int, classes: Sequence[str]
) -> list[str]:
    """The `count` images with the most errors at the best threshold, as HTML figures.

    Errors are detections without an object, and objects without a detection.
    """
    by_id = {record.image_id: record for record in records}
    outcomes = [outcome.above(found.best.score) for outcome in found.outcomes]
    outcomes = [outcome for outcome in outcomes if _errors(outcome)]
    worst = sorted(outcomes, key=lambda outcome: (-_errors(outcome), outcome.image_id))[:count]
    return [_figure(outcome, by_id[outcome.image_id], classes) for outcome in worst]


def _errors(outcome: Outcome) -> int:
    return int(outcome.wrong.sum() + outcome.missed.sum())


def _figure(outcome: Outcome, record: Record, classes: Sequence[str]) -> str:
    found, objects = outcome.found, outcome.objects
    drawn = []
    for kind, chosen in (("right", outcome.right), ("wrong", outcome.wrong)):
        for box, label, score in zip(
            found.boxes[chosen], found.labels[chosen], found.scores[chosen], strict=True
        ):
            drawn.append(_rectangle(kind, box, f"{kind}: {classes[label]} {score:.2f}"))
    for box, label in zip(
        objects.boxes[outcome.missed], objects.labels[outcome.missed], strict=True
    ):
        drawn.append(_rectangle("missed", box, f"missed: {classes[label]}"))
    counts = (
        f"{int(outcome.missed.sum())} missed, {int(outcome.wrong.sum())} wrong, "
        f"{int(outcome.right.sum())} right"
    )
    ratio = record.width / record.height
    return (
        f'<figure tabindex="0"><div class="picture" style="--ratio:{ratio:.3f}">'
        f'<img src="{_thumbnail(record)}" alt="{counts}">'
        f'<svg viewBox="0 0 {record.width} {record.height}">{"".join(drawn)}</svg></div>'
        f"<figcaption>{escape(record.path.name)}: {counts}</figcaption></figure>"
    )


def _rectangle(kind: str, box: Sequence[float], told: str) -> str:
    x1, y1, x2, y2 = (float(side) for side in box)
    return (
        f'<rect class="{kind}" x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" '
        f'height="{y2 - y1:.1f}"><title>{escape(told)}</title></rect>'
    )


def _thumbnail(record: Record) -> str:
    """The image as a data URI of a few tens of kilobytes."""
    image = Image.fromarray(decode_image(record.path.read_bytes(), ImageLimits(), WHITE).pixels)
    image.thumbnail((LONGER_PX, LONGER_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
