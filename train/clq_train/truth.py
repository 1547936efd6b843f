"""The objects that detections are held against, as a COCO tree whose category ids are labels."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clq_train.coco import Split, read_sound_split
from clq_train.config import DataConfig
from clq_train.errors import DataError

Tree = dict[str, Any]


def ground_truth(data: DataConfig, split: str) -> Tree:
    """The truth of a split; raises DataError as coco.read_sound_split does."""
    return truth_of(read_sound_split(data, split), data.classes)


def truth_of(split: Split, classes: list[str]) -> Tree:
    """The split's annotations with merged and dropped categories; category_id is the label.

    Crowd regions stay: COCO neither rewards nor punishes a detection on one. Annotations are
    numbered anew from 1, because COCO's matching takes the id 0 for "no object".
    """
    annotations: list[Tree] = []
    for entry in split.annotations:
        label = split.labels[entry["category_id"]]
        if label is not None:
            known = {"id": len(annotations) + 1, "category_id": label}
            area = entry.get("area", entry["bbox"][2] * entry["bbox"][3])
            crowd = entry.get("iscrowd", 0)
            annotations.append({**entry, **known, "area": area, "iscrowd": crowd})
    categories = [{"id": label, "name": name} for label, name in enumerate(classes)]
    return {
        "info": {},
        "images": split.images,
        "annotations": annotations,
        "categories": categories,
    }


def group_images(truth: Tree, key: str) -> dict[str, set[int]]:
    """Image ids by the value that their records have under a key."""
    groups: dict[str, set[int]] = {}
    for image in truth["images"]:
        if key not in image:
            raise DataError(f"image {image['id']!r} has no key {key!r}; it has {', '.join(image)}")
        groups.setdefault(str(image[key]), set()).add(image["id"])
    return groups


def images_where(truth: Tree, where: Mapping[str, Collection[str]]) -> set[int]:
    """Ids of the images whose record has, under each key, one of the values asked for.

    Raises DataError for a key that a record lacks and for a value that none has.
    """
    kept = {image["id"] for image in truth["images"]}
    for key, values in where.items():
        groups = group_images(truth, key)
        for value in values:
            if value not in groups:
                there = ", ".join(sorted(groups))
                raise DataError(f"{key}: no image has the value {value!r}; there are {there}")
        kept &= set().union(*(groups[value] for value in values))
    return kept


def only_images(truth: Tree, ids: set[int]) -> Tree:
    """The part of a COCO tree that is about these images."""
    images = [image for image in truth["images"] if image["id"] in ids]
    annotations = [entry for entry in truth["annotations"] if entry["image_id"] in ids]
    return {**truth, "images": images, "annotations": annotations}


@dataclass(frozen=True, slots=True)
class ImageObjects:
    """The M objects and crowd regions of one image."""

    boxes: npt.NDArray[np.float64]  # (M, 4) x1 y1 x2 y2, pixels of the image
    labels: npt.NDArray[np.int64]  # (M,)
    crowd: npt.NDArray[np.bool_]  # (M,) whether it is a region of many, not one object


def objects_of(truth: Tree) -> dict[int, ImageObjects]:
    """The objects of every image, in the order of the annotations; also of images without any."""
    entries: dict[int, list[Tree]] = {image["id"]: [] for image in truth["images"]}
    for entry in truth["annotations"]:
        entries[entry["image_id"]].append(entry)
    found = {}
    for image_id, own in entries.items():
        boxes = np.array([entry["bbox"] for entry in own], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([entry["category_id"] for entry in own], np.int64)
        crowd = np.array([entry["iscrowd"] for entry in own], np.bool_)
        found[image_id] = ImageObjects(boxes, labels, crowd)
    return found
