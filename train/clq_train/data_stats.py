"""What is in a split: counts, sizes and shapes of its boxes, and what is wrong with it."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clq_serve.preprocess import plan
from clq_train.coco import Record, read_split, records_of
from clq_train.config import Config
from clq_train.errors import DataError
from clq_train.samples import read_pixels

SMALL_PX, MEDIUM_PX = 32, 96  # COCO's: the side of a square of the largest small, medium area
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
FEW_BOXES = 50
RARE_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Measures:
    """Of each box: M boxes of N images."""

    sides: np.ndarray  # (M, 2) width and height, pixels of the image
    input_sides: np.ndarray  # (M, 2) the same in the network's input
    labels: np.ndarray  # (M,)
    image_of: np.ndarray  # (M,) number of its image
    centres: np.ndarray  # (M, 2) shares of the image's width and height
    counts: np.ndarray  # (N,) boxes of each image
    images: np.ndarray  # (N, 2) width and height
    paths: set[Path]


@dataclass(frozen=True, slots=True)
class ClassStats:
    boxes: int
    images: int  # that show it
    median_side_px: float | None


@dataclass(frozen=True, slots=True)
class SplitStats:
    """One split. A side of a box is the square root of its area; aspect is width over height.

    Percentiles are keyed by percent; empty where there is nothing to measure.
    """

    images: int
    images_without_boxes: int
    boxes: int
    crowds: int  # regions that are left out
    dropped: int  # boxes of dropped categories
    classes: dict[str, ClassStats]
    small: int  # COCO: area under 32 x 32 px
    medium: int  # under 96 x 96 px
    large: int
    side_px: dict[int, float]
    input_side_px: dict[int, float]
    aspect: dict[int, float]
    boxes_an_image: dict[int, float]
    image_width_px: dict[int, float]
    image_height_px: dict[int, float]
    image_sizes: dict[str, int]  # the most frequent, as "1280 x 800"
    under_cell: int  # a side under the finest stride in the network's input
    under_anchor: int  # smaller than the smallest anchor there
    repeated: int  # boxes that equal another of their image and class
    broken: list[str]


def split_stats(config: Config, split: str, decode: bool) -> tuple[SplitStats, Measures]:
    """Statistics of a split, and the values that they are made of.

    decode  decodes every image as well, to find those whose pixels are damaged

    Raises DataError where there is nothing to count: an unknown split, a file that is not COCO.
    """
    found = read_split(config.data, split)
    records = records_of(found)
    broken = [*found.mismatches, *found.broken]
    if decode:
        broken += damaged(records, config.input.background)
    measures = measure(records, config)
    sides = np.sqrt(measures.sides.prod(1))
    input_sides = np.sqrt(measures.input_sides.prod(1))
    stride = config.model.strides[0]
    anchor = config.model.head.anchor_scale * stride
    small, medium = (int((sides < limit).sum()) for limit in (SMALL_PX, MEDIUM_PX))
    sizes = Counter(f"{record.width} x {record.height}" for record in records)
    stats = SplitStats(
        images=len(records),
        images_without_boxes=int((measures.counts == 0).sum()),
        boxes=len(sides),
        crowds=sum(bool(entry.get("iscrowd", 0)) for entry in found.annotations),
        dropped=sum(found.labels[entry["category_id"]] is None for entry in found.annotations),
        classes={
            name: class_stats(measures, label) for label, name in enumerate(config.data.classes)
        },
        small=small,
        medium=medium - small,
        large=len(sides) - medium,
        side_px=percentiles(sides),
        input_side_px=percentiles(input_sides),
        aspect=percentiles(measures.sides[:, 0] / measures.sides[:, 1]),
        boxes_an_image=percentiles(measures.counts),
        image_width_px=percentiles(measures.images[:, 0]),
        image_height_px=percentiles(measures.images[:, 1]),
        image_sizes=dict(sizes.most_common(10)),
        under_cell=int((measures.input_sides.min(1, initial=np.inf) < stride).sum()),
        under_anchor=int((input_sides < anchor).sum()),
        repeated=sum(repeated_boxes(record) for record in records),
        broken=broken,
    )
    return stats, measures


def measure(records: Sequence[Record], config: Config) -> Measures:
    sides, input_sides, centres = [], [], []
    for record in records:
        size = np.array([record.width, record.height])
        geometry = plan(record.width, record.height, config.input_rule)
        resized = np.array([geometry.resized_width, geometry.resized_height])
        side = record.boxes[:, 2:] - record.boxes[:, :2]
        sides.append(side)
        input_sides.append(side * (resized / size))
        centres.append((record.boxes[:, 2:] + record.boxes[:, :2]) / 2 / size)
    none = np.zeros((0, 2))
    counts = np.array([len(record.boxes) for record in records], np.int64)
    return Measures(
        sides=np.concatenate([none, *sides]),
        input_sides=np.concatenate([none, *input_sides]),
        labels=np.concatenate([np.zeros(0, np.int64), *(record.labels for record in records)]),
        centres=np.concatenate([none, *centres]),
        image_of=np.repeat(np.arange(len(records)), counts),
        counts=counts,
        paths={record.path.resolve() for record in records},
        images=np.array([[r.width, r.height] for r in records], np.int64).reshape(-1, 2),
    )


def class_stats(measures: Measures, label: int) -> ClassStats:
    mine = measures.labels == label
    sides = np.sqrt(measures.sides[mine].prod(1))
    images = len(np.unique(measures.image_of[mine]))
    return ClassStats(len(sides), images, float(np.median(sides)) if sides.size else None)


def percentiles(values: np.ndarray) -> dict[int, float]:
    if not values.size:
        return {}
    found = np.percentile(values, PERCENTILES)
    return {percent: float(value) for percent, value in zip(PERCENTILES, found, strict=True)}


def repeated_boxes(record: Record) -> int:
    rows = np.column_stack([record.boxes, record.labels])
    return len(rows) - len(np.unique(rows, axis=0))


def damaged(records: Sequence[Record], background: tuple[int, int, int]) -> list[str]:
    """A line for each image that does not decode; Pillow decodes on all cores."""

    def fault(record: Record) -> str | None:
        try:
            read_pixels(record, background)
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = tqdm(pool.map(fault, records), "decode", len(records), unit="image", leave=False)
        return [line for line in faults if line is not None]


def hints(stats: dict[str, SplitStats], measures: dict[str, Measures], config: Config) -> list[str]:
    """What a person should look into before training, a sentence each."""
    stride = config.model.strides[0]
    anchor = config.model.head.anchor_scale * stride
    found = [f"{split}: there is no box" for split, one in stats.items() if not one.boxes]
    filled = {split: one for split, one in stats.items() if one.boxes}
    thin = _shares({split: (one.under_cell, one.boxes) for split, one in filled.items()}, 0)
    if thin:
        found.append(
            f"in the network's input, boxes are narrower or lower than a cell, {stride} px: "
            f"{thin}; they can lie between the centres of the anchors, and are not learned then: "
            "a larger input helps"
        )
    small = _shares({split: (one.under_anchor, one.boxes) for split, one in filled.items()}, 5)
    if small:
        found.append(
            f"in the network's input, boxes are smaller than the smallest anchor, {anchor:g} px: "
            f"{small}; a larger input or a smaller model.head.anchor_scale helps"
        )
    for split, one in filled.items():
        rare = sorted((c.boxes, name) for name, c in one.classes.items() if c.boxes < FEW_BOXES)
        if rare:
            rarest = ", ".join(f"{name} {count}" for count, name in rare[:RARE_SHOWN])
            more = f" and {len(rare) - RARE_SHOWN} more" if len(rare) > RARE_SHOWN else ""
            found.append(f"{split}: classes of under {FEW_BOXES} boxes: {rarest}{more}")
        if one.repeated:
            found.append(f"{split}: {one.repeated:,} boxes repeat another of their image and class")
    for a, b in combinations(measures, 2):
        both = len(measures[a].paths & measures[b].paths)
        if both:
            found.append(f"{a} and {b} have {both:,} images in common")
    return found


def _shares(counts: dict[str, tuple[int, int]], least_percent: float) -> str:
    """The splits with more than a share, as "train 610 (1.4 %)"."""
    shares = {split: (count, 100 * count / of) for split, (count, of) in counts.items()}
    return ", ".join(
        f"{split} {count:,} ({share:.1f} %)"
        for split, (count, share) in shares.items()
        if share > least_percent
    )
