"""The COCO data that `clq-train eval --data` names, for a model with given classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clq_train.coco import read_annotations
from clq_train.config import DataConfig, SplitConfig
from clq_train.errors import ConfigError, DataError

# Where a folder has the annotations of a split: this project's, COCO's own and exporters' layouts.
ANNOTATIONS = (
    "{split}.json",
    "annotations/{split}.json",
    "annotations/instances_{split}.json",
    "annotations/instances_{split}2017.json",
    "{split}/_annotations.coco.json",
    "{split}/annotations.json",
    "annotations.json",
    "_annotations.coco.json",
)


@dataclass(frozen=True, slots=True)
class Categories:
    """How categories of the data become classes of the model.

    merge      category -> class that it counts as
    drop       categories that are left out
    drop_rest  whether every other category that is no class is left out as well
    """

    merge: Mapping[str, str]
    drop: Sequence[str] = ()
    drop_rest: bool = False


def eval_data(
    data: Path,
    images: Path | None,
    split: str,
    classes: list[str] | None,
    rules: Categories,
    base: DataConfig | None = None,
) -> tuple[DataConfig, list[str]]:
    """The data of an annotation file, or of a folder that has one for the split; and notes on it
    for a person.

    images   folder that the file names are relative to; None looks for it
    classes  of the model, in label order; None takes those of the file
    base     data whose merged and dropped categories are such here as well, where there are any
    returns  a configuration with the one split

    Raises DataError for files that are not there, ConfigError for categories that don't fit.
    """
    annotations = _annotations_in(data, split) if data.is_dir() else data
    tree = read_annotations(annotations)
    names = _texts(tree["categories"], "name")
    if classes is None:
        classes = [n for n in names if n not in rules.merge and n not in rules.drop]
    _check_rules(annotations, names, classes, rules)
    rules = _with_base(rules, base, names)
    strange = [n for n in names if n not in (*classes, *rules.merge, *rules.drop)]
    if strange and not rules.drop_rest:
        raise ConfigError(
            f"{annotations}: not classes of the model: {', '.join(strange)}; let one count as a "
            f"class by --merge {strange[0]}=CLASS, leave it out by --drop {strange[0]}, or leave "
            f"out all by --drop-rest; {_there_are(classes)}"
        )
    known = {rules.merge.get(n, n) for n in names if n not in rules.drop and n not in strange}
    if not known:
        raise ConfigError(f"{annotations}: no category is a class; {_there_are(classes)}")
    absent = [name for name in classes if name not in known]
    folder = _images_of(annotations, tree, images, split)
    config = DataConfig(
        root=Path("."),
        splits={split: SplitConfig(annotations=annotations, images=folder)},
        classes=classes,
        merge=dict(rules.merge),
        drop=[*rules.drop, *strange],
        absent=absent,
    )
    notes = [f"images of {folder}"] if images is None else []
    if strange:
        notes.append(f"left out: {', '.join(strange)}")
    if absent:
        notes.append(f"not measured, for want of a category: {', '.join(absent)}")
    return config, notes


def _check_rules(
    source: Path, names: Sequence[str], classes: Sequence[str], rules: Categories
) -> None:
    asked = [("--merge", name) for name in rules.merge] + [("--drop", name) for name in rules.drop]
    for option, category in asked:
        if category in classes:
            raise ConfigError(f"{option} {category}: is a class of the model")
        if category not in names:
            raise ConfigError(
                f"{option} {category}: no such category in {source}; it has {', '.join(names)}"
            )
    for category, name in rules.merge.items():
        if name not in classes:
            raise ConfigError(f"--merge {category}={name}: no such class; {_there_are(classes)}")


def _with_base(rules: Categories, base: DataConfig | None, names: Sequence[str]) -> Categories:
    """The rules, and for the file's other categories those of `base`."""
    if base is None:
        return rules
    open_names = [name for name in names if name not in (*rules.merge, *rules.drop)]
    merge = {name: base.merge[name] for name in open_names if name in base.merge}
    drop = [name for name in open_names if name in base.drop]
    return Categories({**rules.merge, **merge}, (*rules.drop, *drop), rules.drop_rest)


def _annotations_in(folder: Path, split: str) -> Path:
    tried = [folder / pattern.format(split=split) for pattern in ANNOTATIONS]
    for path in tried:
        if path.is_file():
            return path
    there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.json"))[:10]
    raise DataError(
        f"{folder}: no annotations of the split {split!r}; looked for "
        f"{', '.join(pattern.format(split=split) for pattern in ANNOTATIONS)}; there are "
        f"{', '.join(there) or 'no JSON files'}"
    )


def _images_of(annotations: Path, tree: dict[str, list], images: Path | None, split: str) -> Path:
    """The folder in which the first image is."""
    if images is not None:
        if not images.is_dir():
            raise DataError(f"--images: {images}: there is no such folder")
        return images
    files = _texts(tree["images"], "file_name")
    if not files:
        raise DataError(f"{annotations}: images: no entry has a file_name")
    parent, name = annotations.parent, files[0]
    own_name = annotations.stem.rpartition("_")[2]  # of instances_val2017.json: val2017
    inside = ("", "images", own_name, f"images/{own_name}", split, f"images/{split}")
    tried = [above / folder for above in (parent, parent.parent) for folder in inside]
    tried = list(dict.fromkeys(tried))
    for folder in tried:
        if (folder / name).is_file():
            return folder
    raise DataError(
        f"{annotations}: {name} is in none of {', '.join(map(str, tried))}; name its folder by "
        "--images"
    )


def _there_are(classes: Sequence[str]) -> str:
    return f"the model's classes: {', '.join(classes)}"


def _texts(entries: Sequence[object], key: str) -> list[str]:
    """The different texts under a key; entries without one are told when the split is read."""
    values = [entry.get(key) for entry in entries if isinstance(entry, dict)]
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))
