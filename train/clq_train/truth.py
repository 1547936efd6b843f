"""The objects that detections are held against, as a COCO tree whose category ids are labels."""

from typing import Any

from clq_train.coco import read_sound_split
from clq_train.config import DataConfig
from clq_train.errors import DataError

Tree = dict[str, Any]


def ground_truth(data: DataConfig, split: str) -> Tree:
    """The split's annotations with merged and dropped categories; category_id is the label.

    Crowd regions stay: COCO neither rewards nor punishes a detection on one. Annotations are
    numbered anew from 1, because COCO's matching takes the id 0 for "no object".

    Raises DataError as coco.read_sound_split does.
    """
    found = read_sound_split(data, split)
    annotations: list[Tree] = []
    for entry in found.annotations:
        label = found.labels[entry["category_id"]]
        if label is not None:
            known = {"id": len(annotations) + 1, "category_id": label}
            area = entry.get("area", entry["bbox"][2] * entry["bbox"][3])
            crowd = entry.get("iscrowd", 0)
            annotations.append({**entry, **known, "area": area, "iscrowd": crowd})
    categories = [{"id": label, "name": name} for label, name in enumerate(data.classes)]
    return {
        "info": {},
        "images": found.images,
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


def only_images(truth: Tree, ids: set[int]) -> Tree:
    """The part of a COCO tree that is about these images."""
    images = [image for image in truth["images"] if image["id"] in ids]
    annotations = [entry for entry in truth["annotations"] if entry["image_id"] in ids]
    return {**truth, "images": images, "annotations": annotations}
