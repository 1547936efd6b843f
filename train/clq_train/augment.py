"""One random view of a training image, with its boxes: cropped, resized, mirrored, recoloured."""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from clq_serve.preprocess import fill_padded, plan, resize
from clq_train.config import AugmentConfig, Config

MIN_SIDE_PX = 2.0
# Brightness Y and colour I, Q of R, G, B.  Source: the matrix of NTSC (FCC, 1953), as in Python's
# colorsys.
YIQ = np.array([[0.30, 0.59, 0.11], [0.599, -0.2773, -0.3217], [0.213, -0.5251, 0.3121]])


@dataclass(frozen=True, slots=True)
class Sample:
    """An augmented image and its objects, in its own pixels."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    boxes: np.ndarray  # (M, 4) float32
    labels: np.ndarray  # (M,) int64
    path: str = ""  # of its image file, where it came from one


def augment(
    pixels: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    config: Config,
    rng: np.random.Generator,
    size_rng: np.random.Generator | None = None,
) -> Sample:
    """One random view of an image, as AugmentConfig describes.

    size_rng  draws the size of a whole image; `rng` does where it is None, and all else

    Padding of a crop is right and bottom and keeps its colour, as in the service.
    """
    rules = config.augment
    if rules.crop_px is not None:
        view, moved = _crop(pixels, boxes, rules.crop_px, rules, rng)
    else:
        view, moved = _whole(pixels, boxes, config, size_rng or rng)
    moved, labels = _clip(moved, labels, view.size, rules.min_visible)
    if rng.random() < rules.flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        moved[:, [0, 2]] = view.width - moved[:, [2, 0]]
    seen = np.asarray(_recolour(view, rules, rng))
    if rules.crop_px is not None:
        square = np.empty((rules.crop_px, rules.crop_px, 3), np.uint8)
        fill_padded(square, seen, config.input.pad_value)
        seen = square
    return Sample(seen, moved.astype(np.float32), labels)


def _crop(
    pixels: np.ndarray,
    boxes: np.ndarray,
    side: int,
    rules: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[Image.Image, np.ndarray]:
    """A part of the image, resized by a random factor to `side` or, where the image ends, less."""
    whole = np.array([pixels.shape[1], pixels.shape[0]], np.float64)
    scale = math.exp(rng.uniform(*np.log(rules.scale)))
    extent = np.minimum(side / scale, whole)
    size = np.maximum(1, np.rint(extent * scale)).astype(int)
    factor = size / extent
    low, high = np.zeros(2), whole - extent
    if rules.aim and rng.random() < rules.aim:
        sides = boxes[:, 2:] - boxes[:, :2]
        fitting = ((sides <= extent) & (sides * factor >= MIN_SIDE_PX)).all(1)
        if fitting.any():
            aimed = boxes[rng.choice(np.flatnonzero(fitting))]
            low, high = np.maximum(low, aimed[2:] - extent), np.minimum(high, aimed[:2])
    corner = rng.uniform(low, np.maximum(low, high))
    view = _resized_part(pixels, corner, corner + extent, (int(size[0]), int(size[1])))
    return view, (boxes - np.tile(corner, 2)) * np.tile(factor, 2)


def _resized_part(
    pixels: np.ndarray, start: np.ndarray, stop: np.ndarray, size: tuple[int, int]
) -> Image.Image:
    """What lies between two corners (x, y), resized as preprocess.resize would.

    Pillow copies a whole image before it resizes a part of it: it gets only the pixels that count.
    """
    support = np.maximum(1, (stop - start) / size)  # of the bilinear filter, pixels
    first = np.maximum(0, np.floor(start - support)).astype(int)
    last = np.ceil(stop + support).astype(int)
    near = Image.fromarray(pixels[first[1] : last[1], first[0] : last[0]])
    box = (*(start - first), *np.minimum(stop - first, near.size))
    return near.resize(size, Image.Resampling.BILINEAR, box=box)


def _whole(
    pixels: np.ndarray, boxes: np.ndarray, config: Config, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """The whole image, its shorter side drawn from the range."""
    height, width = pixels.shape[:2]
    low, high = config.augment.shorter_px or (0, 0)
    shorter_px = int(rng.integers(low, high + 1))
    rule = replace(config.input_rule, shorter_px=shorter_px, upscale=True, largest_scale=None)
    geometry = plan(width, height, rule)
    view = resize(pixels, geometry.resized_width, geometry.resized_height)
    factor = geometry.resized_width / width, geometry.resized_height / height
    return Image.fromarray(view), boxes * np.array([*factor, *factor])


def _clip(
    boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int], min_visible: float
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes clipped to the picture; one of which too little is left goes."""
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    clipped = boxes.clip(0, np.array([*size, *size]))
    sides = clipped[:, 2:] - clipped[:, :2]
    keep = (sides.min(1, initial=np.inf) >= MIN_SIDE_PX) & (sides.prod(1) >= min_visible * whole)
    return clipped[keep], labels[keep]


def _recolour(view: Image.Image, rules: AugmentConfig, rng: np.random.Generator) -> Image.Image:
    """Inverted, then contrast and brightness, then saturation and hue: one affine map of RGB."""
    sign, shift = (-1.0, 255.0) if rng.random() < rules.invert else (1.0, 0.0)
    contrast = 1 + rng.uniform(-rules.jitter, rules.jitter)
    brightness = rng.uniform(-rules.jitter, rules.jitter) * 128
    saturation = 1 + rng.uniform(-rules.saturation, rules.saturation)
    turn = math.radians(rng.uniform(-rules.hue_deg, rules.hue_deg))
    if (sign, contrast, brightness, saturation, turn) == (1, 1, 0, 1, 0):
        return view
    colour = saturation * np.array(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    )
    chroma = np.eye(3)
    chroma[1:, 1:] = colour
    gain = sign * contrast * (np.linalg.inv(YIQ) @ chroma @ YIQ)  # (3, 3); a grey stays grey
    offset = np.full((3, 1), (shift - 128) * contrast + 128 + brightness)
    return view.convert("RGB", tuple(np.hstack([gain, offset]).ravel().tolist()))
