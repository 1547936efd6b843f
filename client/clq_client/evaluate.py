"""COCO average precision of what a service answered.  Needs pycocotools: clq-client[eval].

The rules are those of clq_train.evaluate (a test holds the two equal), except that classes are
found by the category ids of the model: a service does not know which names its training merged.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clq_client.inputs import InputError
from clq_client.results import DetectResult, Label


@dataclass(frozen=True, slots=True)
class Evaluation:
    """COCO metrics in [0, 1]; -1 where there is nothing to measure."""

    images: int
    ap: float  # mean over IoU 0.50 .. 0.95 and classes, 100 detections an image
    ap50: float
    ap75: float
    ap_small: float  # objects under 32 x 32 px
    ap_medium: float
    ap_large: float
    per_class: dict[str, float]


@dataclass(frozen=True, slots=True)
class Truth:
    """A COCO file for one model: category_id is the class_id; `dropped` are unknown categories."""

    tree: dict[str, Any]
    paths: dict[int, Path]  # of each image id
    dropped: tuple[str, ...]


def read_truth(data: Path, images: Path, labels: Sequence[Label]) -> Truth:
    """The annotations of `data` whose category the model knows.

    Crowd regions stay: COCO neither rewards nor punishes a detection on one.

    images  folder that the file names are relative to

    Raises InputError for what is no COCO file, a category that has another name in the service,
    an image id or file that stands twice, and a file without any category of the model.
    """
    tree = _read(data)
    class_of = {item.category_id: item for item in labels}
    dropped = []
    for category in tree["categories"]:
        known = class_of.get(category["id"])
        if known is None:
            dropped.append(str(category["name"]))
        elif known.label != category["name"]:
            raise InputError(
                f"{data}: category {category['id']} is {category['name']!r}, "
                f"{known.label!r} in the service: another data set?"
            )
    if len(dropped) == len(tree["categories"]):
        raise InputError(f"{data}: has no category of the service's model")
    annotations = [
        _annotation(entry, class_of[entry["category_id"]].class_id)
        for entry in tree["annotations"]
        if entry["category_id"] in class_of
    ]
    categories = [{"id": item.class_id, "name": item.label} for item in labels]
    kept = {"info": {}, "images": tree["images"], "annotations": annotations}
    return Truth(kept | {"categories": categories}, _paths(data, tree, images), tuple(dropped))


def coco_results(image_id: int, found: DetectResult) -> list[dict[str, Any]]:
    """Detections in COCO's result format; category_id is the class_id."""
    results = []
    for item in found.detections:
        x1, y1, x2, y2 = item.box
        bbox = [x1, y1, x2 - x1, y2 - y1]
        result = {"image_id": image_id, "category_id": item.class_id, "bbox": bbox}
        results.append(result | {"score": item.score})
    return results


def measure(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], labels: Sequence[Label]
) -> Evaluation:
    """COCO's metrics of the results (pycocotools counts)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = len(truth["images"])
    if not results:
        zero = {item.label: 0.0 for item in labels}
        return Evaluation(images, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, zero)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        counted = COCOeval(coco, coco.loadRes(list(results)), "bbox")
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
    precision = counted.eval["precision"]  # (IoU, recall, class, area, detections)
    per_class = {}
    for item in labels:
        values = precision[:, :, item.class_id, 0, 2]
        valid = values[values > -1]
        per_class[item.label] = float(valid.mean()) if valid.size else -1.0
    ap, ap50, ap75, small, medium, large = (float(value) for value in counted.stats[:6])
    return Evaluation(images, ap, ap50, ap75, small, medium, large, per_class)


def _read(data: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(data.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{data}: not JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise InputError(f"{data}: {key}: a COCO file has a list of this name")
    try:
        for category in tree["categories"]:
            category["id"], category["name"]
        for entry in tree["annotations"]:
            entry["image_id"], entry["category_id"], entry["bbox"][3], entry["id"]
        for image in tree["images"]:
            image["id"], image["file_name"]
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(f"{data}: an entry is not of COCO's form: {error!r}") from error
    return tree


def _annotation(entry: dict[str, Any], class_id: int) -> dict[str, Any]:
    area = entry.get("area", entry["bbox"][2] * entry["bbox"][3])
    return {**entry, "category_id": class_id, "area": area, "iscrowd": entry.get("iscrowd", 0)}


def _paths(data: Path, tree: dict[str, Any], images: Path) -> dict[int, Path]:
    paths = {image["id"]: images / image["file_name"] for image in tree["images"]}
    if len(paths) != len(tree["images"]) or len(set(paths.values())) != len(paths):
        raise InputError(f"{data}: images: an id or a file_name stands twice")
    return paths
