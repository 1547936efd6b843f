"""Detections in COCO's result format, in memory and as a file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clq_serve.detector import Detections
from clq_train.coco import read_json
from clq_train.errors import DataError
from clq_train.measure import Result
from clq_train.whole_file import write_text


def picked(found: Detections, which: slice | npt.NDArray[np.bool_]) -> Detections:
    """Some of the detections of an image, in their order."""
    return Detections(
        found.boxes[which],
        found.scores[which],
        found.labels[which],
        found.cls_scores[which],
        found.qualities[which],
    )


def coco_results(image_id: int, found: Detections) -> list[Result]:
    """Detections in COCO's result format; category_id is the label."""
    boxes = found.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {"image_id": image_id, "category_id": int(label), "bbox": box.tolist(), "score": float(s)}
        for box, label, s in zip(boxes, found.labels, found.scores, strict=True)
    ]


def save_results(path: Path, results: Sequence[Result], ids: Mapping[int, int]) -> None:
    """Writes COCO's result file.

    ids  the data set's own category id of each label
    """
    own = [{**result, "category_id": ids[result["category_id"]]} for result in results]
    write_text(path, json.dumps(own))


def category_ids(
    classes: Sequence[str], categories: Sequence[Result], labels: Mapping[int, int | None]
) -> dict[int, int]:
    """The data set's id of each label: that of the category with the class's own name, or else of
    the first that counts as the class.

    categories  of the annotation file
    labels      of each category id
    """
    ids: dict[int, int] = {}
    for category in categories:
        label = labels[category["id"]]
        if label is not None and (label not in ids or category["name"] == classes[label]):
            ids[label] = category["id"]
    return ids


def load_results(
    path: Path, image_ids: Sequence[int], labels: Mapping[int, int | None]
) -> dict[int, Detections]:
    """The detections of each image, by descending score, of a file in COCO's result format.

    image_ids  of the data
    labels     of each category id; detections of categories with the label None are left out

    Such a file has one score a box: it stands for the class score as well, and the quality is 1.

    Raises DataError for a file that is not of the format, with the entry and what is wrong with it.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of detections, COCO's result format")
    found: dict[int, list[tuple[list[float], float, int]]] = {i: [] for i in image_ids}
    for number, entry in enumerate(entries):
        problem = _problem(entry, found, labels)
        if problem is not None:
            raise DataError(f"{path}: entry {number}: {problem}")
        label = labels[entry["category_id"]]
        if label is not None:
            found[entry["image_id"]].append((entry["bbox"], entry["score"], label))
    return {image_id: _detections(rows) for image_id, rows in found.items()}


def _problem(
    entry: object, images: Mapping[int, object], labels: Mapping[int, object]
) -> str | None:
    """What is wrong with one detection of a file, or None."""
    if not isinstance(entry, dict):
        return f"{entry!r:.40} is no object"
    for key, known in (("image_id", images), ("category_id", labels)):
        if not isinstance(entry.get(key), int) or entry[key] not in known:
            return f"{key} {entry.get(key)!r} is not in the annotations"
    box = entry.get("bbox")
    numbers = [*box, entry.get("score")] if isinstance(box, list) and len(box) == 4 else [None]
    if not all(isinstance(value, int | float) and np.isfinite(value) for value in numbers):
        return f"bbox {box!r} and score {entry.get('score')!r} are not five finite numbers"
    return None


def _detections(rows: Sequence[tuple[list[float], float, int]]) -> Detections:
    ordered = sorted(rows, key=lambda row: -row[1])
    boxes = np.array([box for box, _, _ in ordered], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([score for _, score, _ in ordered], np.float32)
    labels = np.array([label for _, _, label in ordered], np.int64)
    return Detections(boxes, scores, labels, scores, np.ones_like(scores))
