"""One random view of a training image, with its boxes: cropped, resized, mirrored, recoloured."""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from clq_serve.preprocess import plan, resize
from clq_train.config import AugmentConfig, Config

MIN_SIDE_PX = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """An augmented image and its objects, in its own pixels."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    boxes: np.ndarray  # (M, 4) float32
    labels: np.ndarray  # (M,) int64
    image_id: int | None = None  # of its record, where it came from one


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
