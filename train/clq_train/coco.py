"""COCO-format annotations, checked before anything is trained on them."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clq_train.config import DataConfig
from clq_train.errors import DataError

# COCO's own files round coordinates: a box may reach this far over the image's edge and is clipped.
TOLERANCE_PX = 1.0
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Record:
    """One image and its objects."""

    image_id: int
    path: Path
    width: int
    height: int
    boxes: np.ndarray  # (M, 4) float32, x1 y1 x2 y2 in pixels of the image
    labels: np.ndarray  # (M,) int64, index in DataConfig.classes


def load_split(data: DataConfig, split: str) -> list[Record]:
    """The records of a split, in the order of the file; crowd regions are left out.

    Raises DataError listing every broken entry with its file, id and value: an image that is
    missing, a duplicate id, an unknown category or image, a box that is not four numbers, has no
    area or lies outside.
    """
    annotations, images = split_paths(data, split)
    tree = read_annotations(annotations)
    labels = category_labels(data, tree["categories"], annotations)
    problems: list[str] = []
    by_id = _images(tree["images"], images, annotations, problems)
    objects: dict[int, list[tuple[list[float], int]]] = {image_id: [] for image_id in by_id}
    seen: set[int] = set()
    for entry in tree["annotations"]:
        problem = _annotation_problem(entry, by_id, labels, seen)
        if problem is not None:
            problems.append(f"{annotations}: annotation {entry.get('id')!r}: {problem}")
            continue
        seen.add(entry["id"])
        label = labels[entry["category_id"]]
        if label is not None and not entry.get("iscrowd", 0):
            objects[entry["image_id"]].append((entry["bbox"], label))
    if problems:
        raise DataError(_summary(problems))
    return [_record(image, images, objects[image_id]) for image_id, image in by_id.items()]


def split_paths(data: DataConfig, split: str) -> tuple[Path, Path]:
    """Annotation file and image folder of a split; DataError for an unknown name."""
    if split not in data.splits:
        known = ", ".join(data.splits)
        raise DataError(f"data.splits: no split {split!r}; the configuration has {known}")
    config = data.splits[split]
    return data.root / config.annotations, data.root / config.images


def read_annotations(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The file's tree, with the three lists that COCO requires."""
    try:
        tree = json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise DataError(f"{path}: {key}: a COCO file has a list of this name")
    return tree


def category_labels(
    data: DataConfig, categories: Iterable[dict[str, Any]], source: Path
) -> dict[int, int | None]:
    """Label of each category id, None for a dropped category.

    Raises DataError for a category that the configuration does not mention, and for a class
    without one.
    """
    label_of = {name: label for label, name in enumerate(data.classes)}
    labels: dict[int, int | None] = {}
    for category in categories:
        name = category["name"]
        target = data.merge.get(name, name)
        if target not in label_of and name not in data.drop:
            raise DataError(
                f"{source}: category {category['id']} {name!r} is unknown; "
                "name it in data.classes, data.merge or data.drop"
            )
        if category["id"] in labels:
            raise DataError(f"{source}: category id {category['id']} stands twice")
        labels[category["id"]] = label_of.get(target)
    missing = set(range(len(data.classes))) - {x for x in labels.values() if x is not None}
    if missing:
        names = ", ".join(data.classes[label] for label in sorted(missing))
        raise DataError(f"{source}: data.classes: no category of the file is named {names}")
    return labels


def category_ids(data: DataConfig, source: Path) -> list[int]:
    """The data set's category id of each class, the one of the class's own name."""
    ids = {c["name"]: c["id"] for c in read_annotations(source)["categories"]}
    missing = [name for name in data.classes if name not in ids]
    if missing:
        raise DataError(f"{source}: no category is named {', '.join(missing)}")
    return [ids[name] for name in data.classes]


def _images(
    entries: list[dict[str, Any]], folder: Path, source: Path, problems: list[str]
) -> dict[int, dict[str, Any]]:
    by_id: dict[int, dict[str, Any]] = {}
    for entry in entries:
        image_id = entry.get("id")
        where = f"{source}: image {image_id!r}"
        sides = entry.get("width"), entry.get("height")
        if image_id in by_id:
            problems.append(f"{where}: the id stands twice")
        elif not all(isinstance(side, int) and side > 0 for side in sides):
            problems.append(
                f"{where}: width and height are {sides}, expected positive whole numbers"
            )
        elif not (folder / str(entry.get("file_name"))).is_file():
            problems.append(f"{where}: no file {folder / str(entry.get('file_name'))}")
        by_id.setdefault(image_id, entry)
    return by_id


def _annotation_problem(
    entry: dict[str, Any],
    images: dict[int, dict[str, Any]],
    labels: dict[int, int | None],
    seen: set[int],
) -> str | None:
    """What is wrong with an annotation, or None."""
    if entry.get("id") in seen:
        return "the id stands twice"
    if entry.get("category_id") not in labels:
        return f"category_id {entry.get('category_id')!r} is unknown"
    image = images.get(entry.get("image_id"))
    if image is None:
        return f"image_id {entry.get('image_id')!r} is unknown"
    box = entry.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4
    if not numbers or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
        return f"bbox {box!r} is not four finite numbers"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return f"bbox {box} has no area"
    if not isinstance(image.get("width"), int) or not isinstance(image.get("height"), int):
        return None  # the image itself is reported
    over = max(-x, -y, x + width - image["width"], y + height - image["height"])
    if over > TOLERANCE_PX:
        size = f"{image['width']} x {image['height']}"
        return f"bbox {box} reaches {over:g} px outside image {image['id']!r} of {size}"
    return None


def _record(image: dict[str, Any], folder: Path, objects: list[tuple[list[float], int]]) -> Record:
    width, height = image["width"], image["height"]
    boxes = np.array([box for box, _ in objects], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    labels = np.array([label for _, label in objects], np.int64)
    return Record(image["id"], folder / image["file_name"], width, height, boxes, labels)


def _summary(problems: list[str]) -> str:
    lines = [f"{len(problems)} broken entries", *problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"... and {len(problems) - SHOWN} more")
    return "\n".join(lines)
