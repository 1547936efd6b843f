"""COCO-format annotations, checked before anything is trained on them."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clq_serve.errors import ImageError
from clq_serve.preprocess import ImageLimits, upright_size
from clq_train.config import DataConfig, MoreConfig, SplitConfig
from clq_train.errors import DataError

log = logging.getLogger(__name__)

# COCO's own files round coordinates: a box may reach this far over the image's edge and is clipped.
TOLERANCE_PX = 1.0
LARGEST = float(np.finfo(np.float32).max)
THINNEST_PX = 0.01  # what float32 can tell from nothing in the largest image
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


@dataclass(frozen=True, slots=True)
class Split:
    """What an annotation file holds, sound and broken.

    images       entries of the file, of images that can be read
    annotations  entries of the file, of these images; of dropped categories and crowds too
    labels       of each category id, None for a dropped category
    folder       of the images
    mismatches   a line for each difference of the file's categories from the configuration's
    broken       a line for each entry that can't be used
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    labels: dict[int, int | None]
    folder: Path
    mismatches: list[str]
    broken: list[str]


def load_split(data: DataConfig, split: str) -> list[Record]:
    """The records of a split, in the order of the file; crowd regions are left out.

    Raises DataError as read_sound_split does.
    """
    return records_of(read_sound_split(data, split))


def training_records(data: DataConfig) -> list[Record]:
    """What an epoch shows: the split `train`, then each of `data.more` as often as it says.

    Raises DataError as read_sound_split does; a set of `data.more` may lack classes.
    """
    records = load_split(data, "train")
    for name, config in _more(data).items():
        records += config.times * load_split(data, name)
    return records


def read_sound_split(data: DataConfig, split: str) -> Split:
    """The split, with no more broken entries than it is allowed to have; those are logged.

    Raises DataError listing every broken entry with its file, id and value: an image that is
    missing, can't be read or has another size, a duplicate id, an unknown category or image, a box
    that is not four numbers, has no area or lies outside. Only the headers of the images are read.
    """
    found, allowed = read_split(data, split), split_config(data, split).allow_broken
    if found.mismatches:
        raise DataError("\n".join(found.mismatches))
    if len(found.broken) > allowed:
        raise DataError(_summary(found.broken))
    if found.broken:
        log.warning("split %s: left out: %s", split, _summary(found.broken))
    return found


def read_split(data: DataConfig, split: str) -> Split:
    """The split, however much of it is broken.

    Raises DataError where there is nothing to go on with: an unknown split, a file that is not
    COCO.
    """
    source, folder = split_paths(data, split)
    tree = read_annotations(source)
    own = isinstance(split_config(data, split), MoreConfig)
    may_lack = data.classes if own else data.absent
    labels, mismatches = _match_categories(data, may_lack, tree["categories"], source)
    broken: list[str] = []
    by_id, unusable = _images(tree["images"], folder, source, broken)
    annotations: list[dict[str, Any]] = []
    seen: set[int] = set()
    for entry in tree["annotations"]:
        problem = _annotation_problem(entry, by_id, unusable, labels, seen)
        if problem is not None:
            broken.append(f"{source}: annotation {_id_of(entry)}: {problem}")
            continue
        seen.add(entry["id"])
        if entry["image_id"] not in unusable:
            annotations.append(entry)
    images = [image for image_id, image in by_id.items() if image_id not in unusable]
    return Split(images, annotations, labels, folder, mismatches, broken)


def records_of(split: Split) -> list[Record]:
    """The images of a split with their objects; crowd regions are left out."""
    objects: dict[int, list[tuple[list[float], int]]] = {i["id"]: [] for i in split.images}
    for entry in split.annotations:
        label = split.labels[entry["category_id"]]
        if label is not None and not entry.get("iscrowd", 0):
            objects[entry["image_id"]].append((entry["bbox"], label))
    return [_record(image, split.folder, objects[image["id"]]) for image in split.images]


def split_paths(data: DataConfig, split: str) -> tuple[Path, Path]:
    """Annotation file and image folder of a split; DataError for an unknown name."""
    config = split_config(data, split)
    return data.root / config.annotations, data.root / config.images


def split_config(data: DataConfig, split: str) -> SplitConfig:
    """The split of that name; DataError for an unknown one."""
    known = data.splits | _more(data)
    if split not in known:
        raise DataError(
            f"data.splits: no split {split!r}; the configuration has {', '.join(known)}"
        )
    return known[split]


def split_names(data: DataConfig) -> list[str]:
    """The splits, and `more.0` and so on for the sets of `data.more`."""
    return [*data.splits, *_more(data)]


def _more(data: DataConfig) -> dict[str, MoreConfig]:
    return {f"more.{number}": config for number, config in enumerate(data.more)}


def read_json(path: Path) -> Any:
    """What the file holds; DataError if it can't be read or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error


def read_annotations(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The file's tree, with the three lists that COCO requires."""
    tree = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise DataError(f"{path}: {key}: a COCO file has a list of this name")
    return tree


def category_ids(data: DataConfig, source: Path) -> list[int]:
    """The data set's category id of each class, the one of the class's own name."""
    ids = {c["name"]: c["id"] for c in read_annotations(source)["categories"]}
    missing = [name for name in data.classes if name not in ids]
    if missing:
        raise DataError(f"{source}: no category is named {', '.join(missing)}")
    return [ids[name] for name in data.classes]


def _match_categories(
    data: DataConfig,
    may_lack: Sequence[str],
    categories: Iterable[dict[str, Any]],
    source: Path,
) -> tuple[dict[int, int | None], list[str]]:
    """Label of each category id, None for a dropped category; and what does not match.

    That is a category that the configuration does not mention, and a class without one that is not
    in `may_lack`.
    """
    label_of = {name: label for label, name in enumerate(data.classes)}
    labels: dict[int, int | None] = {}
    mismatches = []
    for category in categories:
        category_id, name = _value(category, "id"), _value(category, "name")
        if not isinstance(category_id, int) or not isinstance(name, str):
            mismatches.append(
                f"{source}: category {category!r}: expected a number `id` and a `name`"
            )
            continue
        target = data.merge.get(name, name)
        if target not in label_of and name not in data.drop:
            mismatches.append(
                f"{source}: category {category_id} {name!r} is unknown; "
                "name it in data.classes, data.merge or data.drop"
            )
        if category_id in labels:
            mismatches.append(f"{source}: category id {category_id} stands twice")
        labels.setdefault(category_id, label_of.get(target))
    expected = set(data.classes) - set(may_lack)
    missing = {label_of[name] for name in expected} - set(labels.values())
    if missing:
        names = ", ".join(data.classes[label] for label in sorted(missing))
        mismatches.append(f"{source}: data.classes: no category of the file is named {names}")
    return labels, mismatches


def _images(
    entries: list[dict[str, Any]], folder: Path, source: Path, problems: list[str]
) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """The image entries by id, and the ids of those that can't be used."""
    by_id: dict[int, dict[str, Any]] = {}
    broken: set[int] = set()
    for entry in entries:
        image_id = _value(entry, "id")
        problem = _image_problem(entry, folder, by_id)
        if problem is not None:
            problems.append(f"{source}: image {_id_of(entry)}: {problem}")
        if isinstance(image_id, int):
            if problem is not None:
                broken.add(image_id)
            by_id.setdefault(image_id, entry)
    return by_id, broken


def _image_problem(
    entry: dict[str, Any], folder: Path, by_id: dict[int, dict[str, Any]]
) -> str | None:
    """What is wrong with an image entry, or None."""
    image_id, name = _value(entry, "id"), _value(entry, "file_name")
    if not isinstance(image_id, int):
        return f"the id {image_id!r} is not a whole number"
    if image_id in by_id:
        return "the id stands twice"
    sides = entry.get("width"), entry.get("height")
    if not all(isinstance(side, int) and side > 0 for side in sides):
        return f"width and height are {sides}, expected positive whole numbers"
    if not isinstance(name, str):
        return f"file_name {name!r} is not a name"
    path = folder / name
    if not path.is_file():
        return f"no file {path}"
    try:
        size = upright_size(path, ImageLimits())
    except (OSError, ImageError) as error:
        return f"{path}: {error}"
    if size != sides:
        return f"{path} is {size[0]} x {size[1]}, the annotations say {sides[0]} x {sides[1]}"
    return None


def _annotation_problem(
    entry: dict[str, Any],
    images: dict[int, dict[str, Any]],
    broken: set[int],
    labels: dict[int, int | None],
    seen: set[int],
) -> str | None:
    """What is wrong with an annotation, or None."""
    own_id, image_id, category_id = (_value(entry, k) for k in ("id", "image_id", "category_id"))
    if not isinstance(own_id, int):
        return f"the id {own_id!r} is not a whole number"
    if own_id in seen:
        return "the id stands twice"
    if not isinstance(category_id, int) or category_id not in labels:
        return f"category_id {category_id!r} is unknown"
    if not isinstance(image_id, int) or image_id not in images:
        return f"image_id {image_id!r} is unknown"
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(v) for v in box):
        return f"bbox {box!r} is not four finite numbers"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return f"bbox {box} has no area"
    if image_id in broken:
        return None  # the image itself is reported
    image = images[image_id]
    over = max(-x, -y, x + width - image["width"], y + height - image["height"])
    if over > TOLERANCE_PX:
        size = f"{image['width']} x {image['height']}"
        return f"bbox {box} reaches {over:g} px outside image {image_id} of {size}"
    across = min(x + width, image["width"]) - max(x, 0)
    down = min(y + height, image["height"]) - max(y, 0)
    if min(across, down) < THINNEST_PX:
        return f"bbox {box} has no area inside image {image_id}"
    return None


def _value(entry: object, key: str) -> Any:
    """What an entry of the file has under a key; None if it has nothing there or is no object."""
    return entry.get(key) if isinstance(entry, dict) else None


def _id_of(entry: object) -> str:
    return repr(_value(entry, "id")) if isinstance(entry, dict) else f"{entry!r:.40}"


def _is_finite(value: object) -> bool:
    """Whether it is a number that float32 can hold."""
    return isinstance(value, int | float) and abs(value) <= LARGEST


def _record(image: dict[str, Any], folder: Path, objects: list[tuple[list[float], int]]) -> Record:
    width, height = image["width"], image["height"]
    boxes = np.array([box for box, _ in objects], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    labels = np.array([label for _, label in objects], np.int64)
    return Record(image["id"], folder / image["file_name"], width, height, boxes, labels)


def _summary(problems: list[str]) -> str:
    noun = "entry" if len(problems) == 1 else "entries"
    lines = [f"{len(problems)} broken {noun}", *problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"... and {len(problems) - SHOWN} more")
    return "\n".join(lines)
