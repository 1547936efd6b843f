"""From pixels to detections: prepare, run the engine, suppress, map back.  No HTTP in here.

The service and the evaluation of the trainer use the same class, with different engines.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from clq_serve.bundle import Thresholds
from clq_serve.candidates import Candidates, Floats, Labels
from clq_serve.nms import ClassNms
from clq_serve.preprocess import (
    DecodedImage,
    Geometry,
    InputRule,
    Pixels,
    boxes_to_original,
    prepare,
)


class Engine(Protocol):
    """Anything that turns (N, H, W, 3) uint8 prepared images into Candidates of N rows."""

    def run(self, batch: Pixels) -> Candidates: ...


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """What one request asks for.

    score    in [0, 1]; detections with a score above it are given
    iou      in [0, 1]; threshold of the suppression
    max      how many detections are given at most, >= 1
    classes  labels to look for, others are dropped before the suppression; None = all
    """

    score: float
    iou: float
    max: int
    classes: frozenset[int] | None = None

    @classmethod
    def from_thresholds(cls, thresholds: Thresholds) -> Self:
        """The defaults of a manifest, for all classes."""
        return cls(thresholds.score, thresholds.iou, thresholds.max)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image as the engine takes it: (H, W, 3) padded pixels and how to map boxes back."""

    pixels: Pixels
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class Detections:
    """The D detections of one image, by descending score.

    boxes       (D, 4) float32, x1 y1 x2 y2, pixels of the upright original image, clipped to it
    scores      (D,) float32, ranking score = cls_score * quality ** alpha
    labels      (D,) int64, index in the manifest's classes
    cls_scores  (D,) float32
    qualities   (D,) float32
    """

    boxes: Floats
    scores: Floats
    labels: Labels
    cls_scores: Floats
    qualities: Floats


@dataclass(frozen=True, slots=True)
class StageTimes:
    """How long each stage took, milliseconds, all images of the call together."""

    prepare_ms: float
    infer_ms: float
    post_ms: float


class Detector:
    """The whole way from pixels to detections, for one model and its input rule."""

    def __init__(self, engine: Engine, nms: ClassNms, rule: InputRule) -> None:
        self._engine = engine
        self._nms = nms
        self._rule = rule
        self.shapes: Counter[tuple[int, int]] = Counter()  # of the images: padded height, width

    def prepare(self, image: DecodedImage | Pixels) -> Prepared:
        """The image, or its (H, W, 3) uint8 RGB pixels, resized and padded by the rule."""
        pixels = image.pixels if isinstance(image, DecodedImage) else image
        return Prepared(*prepare(pixels, self._rule))

    def detect(
        self, images: Sequence[DecodedImage | Pixels], options: DetectOptions
    ) -> tuple[list[Detections], StageTimes]:
        """The detections of each image, in the order given, and the time of each stage."""
        start = time.perf_counter()
        prepared = [self.prepare(image) for image in images]
        prepare_ms = 1e3 * (time.perf_counter() - start)
        found, times = self.detect_prepared(prepared, options)
        return found, StageTimes(prepare_ms, times.infer_ms, times.post_ms)

    def detect_prepared(
        self, images: Sequence[Prepared], options: DetectOptions
    ) -> tuple[list[Detections], StageTimes]:
        """The same for images that went through `prepare` before (prepare_ms is 0).

        Only images of one padded shape share a call of the engine: more padding for the sake of a
        batch would change an image's result with its neighbours.
        """
        found: dict[int, Detections] = {}
        infer_ms = post_ms = 0.0
        for indices in _by_shape(images):
            group = [images[i] for i in indices]
            detections, times = self.detect_batch(group, [options] * len(group))
            found.update(zip(indices, detections, strict=True))
            infer_ms += times.infer_ms
            post_ms += times.post_ms
        return [found[i] for i in range(len(images))], StageTimes(0.0, infer_ms, post_ms)

    def detect_batch(
        self,
        images: Sequence[Prepared],
        options: Sequence[DetectOptions],
        stacked: Pixels | None = None,
    ) -> tuple[list[Detections], StageTimes]:
        """The detections of images of one padded shape, each by its own options, in one call of the
        engine (prepare_ms is 0).

        stacked  the pixels of `images`, (N, H, W, 3), if they have been put together before
        """
        start = time.perf_counter()
        if stacked is None:
            stacked = np.stack([image.pixels for image in images])
        height, width = images[0].pixels.shape[:2]
        self.shapes[height, width] += len(images)
        candidates = self._engine.run(stacked)
        between = time.perf_counter()
        found = [
            self._finish(Candidates(*(array[row] for array in candidates)), image.geometry, wanted)
            for row, (image, wanted) in enumerate(zip(images, options, strict=True))
        ]
        post_s = time.perf_counter() - between
        return found, StageTimes(0.0, 1e3 * (between - start), 1e3 * post_s)

    def _finish(self, one: Candidates, geometry: Geometry, options: DetectOptions) -> Detections:
        """Suppression and mapping back, for the (K, ...) candidates of one image."""
        one = in_image(one, geometry)
        scores = one.scores
        if options.classes is not None:
            scores = np.where(np.isin(one.labels, sorted(options.classes)), scores, np.float32(0.0))
        kept = self._nms(one.boxes, scores, one.labels, options.iou, options.score, options.max)
        return Detections(
            boxes=one.boxes[kept],
            scores=one.scores[kept],
            labels=one.labels[kept],
            cls_scores=one.cls_scores[kept],
            qualities=one.qualities[kept],
        )


def in_image(one: Candidates, geometry: Geometry) -> Candidates:
    """The (K, ...) candidates of one image in pixels of the upright original, clipped to it.

    Clipped before the suppression: the overlap that counts is the one inside the image. A box that
    lies in the padding gets the score 0 of an empty slot.
    """
    boxes = boxes_to_original(one.boxes, geometry)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return one._replace(boxes=boxes, scores=np.where(inside, one.scores, np.float32(0.0)))


def _by_shape(images: Sequence[Prepared]) -> list[list[int]]:
    """Indices of the images, grouped by padded shape."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.pixels.shape, []).append(index)
    return list(groups.values())
