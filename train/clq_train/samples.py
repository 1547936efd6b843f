"""Training samples: an endless, seeded stream of augmented images with their boxes.

Sample number `position` of a run depends on the run's seed and on `position` alone: workers can't
repeat each other, and a run that resumes goes on with the very samples it would have seen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from clq_serve.preprocess import ImageLimits, decode_image, plan, resize
from clq_train.clq import Objects
from clq_train.coco import Record
from clq_train.config import AugmentConfig, Config
from clq_train.errors import DataError

MIN_SIDE_PX = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """An augmented image and its objects, in its own pixels."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    boxes: np.ndarray  # (M, 4) float32
    labels: np.ndarray  # (M,) int64


@dataclass(frozen=True, slots=True)
class Batch:
    images: Tensor  # (B, H, W, 3) uint8 RGB
    objects: list[Objects]  # of each image, in its pixels


class SampleStream(Dataset[Sample]):
    """Samples 0 .. schedule.steps * schedule.batch - 1 of a run."""

    def __init__(self, records: Sequence[Record], config: Config) -> None:
        self.records, self.config = list(records), config
        self._cache: dict[int, np.ndarray] = {}
        self._cache_room = config.run.cache_mib * 2**20

    def __len__(self) -> int:
        return self.config.schedule.steps * self.config.schedule.batch

    def __getitem__(self, position: int) -> Sample:
        epoch, place = divmod(position, len(self.records))
        seed = self.config.run.seed
        order = np.random.default_rng([seed, 1, epoch]).permutation(len(self.records))
        index = int(order[place])
        rng = np.random.default_rng([seed, 2, position])
        record = self.records[index]
        return augment(self._pixels(index), record.boxes, record.labels, self.config, rng)

    def _pixels(self, index: int) -> np.ndarray:
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        pixels = read_pixels(self.records[index], self.config.input.background)
        if pixels.nbytes <= self._cache_room:
            self._cache_room -= pixels.nbytes
            self._cache[index] = pixels
        return pixels


def read_pixels(record: Record, background: tuple[int, int, int]) -> np.ndarray:
    """The image of a record, upright RGB uint8, decoded as the service decodes it.

    Raises DataError when its size is not the one that the annotations state.
    """
    pixels = decode_image(record.path.read_bytes(), ImageLimits(), background).pixels
    if pixels.shape[:2] != (record.height, record.width):
        raise DataError(
            f"{record.path}: the image is {pixels.shape[1]} x {pixels.shape[0]}, "
            f"the annotations say {record.width} x {record.height}"
        )
    return pixels


def augment(
    pixels: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    config: Config,
    rng: np.random.Generator,
) -> Sample:
    """One random view of an image, as AugmentConfig describes."""
    rules = config.augment
    if rules.crop_px is not None:
        sample = _crop(pixels, boxes, labels, rules.crop_px, config, rng)
    else:
        sample = _whole(pixels, boxes, labels, config, rng)
    if rng.random() < rules.flip:
        sample = _flip(sample)
    return Sample(_recolour(sample.pixels, rules, rng), sample.boxes, sample.labels)


def collate(samples: Sequence[Sample], multiple: int, pad_value: Sequence[int]) -> Batch:
    """Images padded right and bottom to the largest, rounded up to `multiple`."""
    height = _round_up(max(s.pixels.shape[0] for s in samples), multiple)
    width = _round_up(max(s.pixels.shape[1] for s in samples), multiple)
    images = np.empty((len(samples), height, width, 3), np.uint8)
    images[:] = np.asarray(pad_value, np.uint8)
    for image, sample in zip(images, samples, strict=True):
        image[: sample.pixels.shape[0], : sample.pixels.shape[1]] = sample.pixels
    objects = [Objects(torch.from_numpy(s.boxes), torch.from_numpy(s.labels)) for s in samples]
    return Batch(torch.from_numpy(images), objects)


def _crop(
    pixels: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    side: int,
    config: Config,
    rng: np.random.Generator,
) -> Sample:
    """A square of the image, resized by a random factor; what lies beyond the image is padding."""
    height, width = pixels.shape[:2]
    low, high = config.augment.scale
    scale = math.exp(rng.uniform(math.log(low), math.log(high)))
    region = side / scale
    left = rng.uniform(0, max(width - region, 0))
    top = rng.uniform(0, max(height - region, 0))
    right, bottom = min(left + region, width), min(top + region, height)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    part = Image.fromarray(pixels).resize(
        size, Image.Resampling.BILINEAR, box=(left, top, right, bottom)
    )
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = np.asarray(config.input.pad_value, np.uint8)
    canvas[: size[1], : size[0]] = np.asarray(part)
    factor = size[0] / (right - left), size[1] / (bottom - top)
    moved = (boxes - np.array([left, top, left, top])) * np.array([*factor, *factor])
    return _clip(canvas, moved, labels, size, config.augment.min_visible)


def _whole(
    pixels: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    config: Config,
    rng: np.random.Generator,
) -> Sample:
    """The whole image, its shorter side drawn from the range."""
    height, width = pixels.shape[:2]
    low, high = config.augment.shorter_px or (0, 0)
    rule = replace(config.input_rule, shorter_px=int(rng.integers(low, high + 1)), upscale=True)
    geometry = plan(width, height, rule)
    size = geometry.resized_width, geometry.resized_height
    resized = resize(pixels, *size)
    factor = size[0] / width, size[1] / height
    moved = boxes * np.array([*factor, *factor])
    return _clip(resized, moved, labels, size, config.augment.min_visible)


def _clip(
    pixels: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    size: tuple[int, int],
    min_visible: float,
) -> Sample:
    """Boxes clipped to the picture; one of which too little is left goes."""
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    clipped = boxes.clip(0, np.array([*size, *size]))
    sides = clipped[:, 2:] - clipped[:, :2]
    keep = (sides.min(1, initial=np.inf) >= MIN_SIDE_PX) & (sides.prod(1) >= min_visible * whole)
    return Sample(pixels, clipped[keep].astype(np.float32), labels[keep])


def _flip(sample: Sample) -> Sample:
    width = sample.pixels.shape[1]
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return Sample(np.ascontiguousarray(sample.pixels[:, ::-1]), boxes, sample.labels)


def _recolour(pixels: np.ndarray, rules: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Inverted, brighter or darker, with more or less contrast: one look-up table a channel."""
    values = np.arange(256, dtype=np.float32)
    if rng.random() < rules.invert:
        values = 255 - values
    contrast = 1 + rng.uniform(-rules.jitter, rules.jitter)
    brightness = rng.uniform(-rules.jitter, rules.jitter) * 128
    table = ((values - 128) * contrast + 128 + brightness).clip(0, 255).astype(np.uint8)
    return table[pixels]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
