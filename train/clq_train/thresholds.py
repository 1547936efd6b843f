"""What a score threshold would give: precision, recall and F1 of single detections."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clq_train.matching import Doubles, Flags

STEP = 0.01


@dataclass(frozen=True, slots=True)
class Operating:
    """Detections with a score above `score`, right if matched at IoU 0.5, of all classes together.

    precision  right / detections, 1 without detections
    recall     right / objects
    f1         their harmonic mean
    """

    score: float
    detections: int
    precision: float
    recall: float
    f1: float


def operating_points(scores: Doubles, right: Flags, objects: int) -> list[Operating]:
    """One for each threshold 0.00, 0.01 .. 0.99.

    scores  (D,) of all images
    right   (D,) whether each detection has an object
    """
    order = np.argsort(scores)
    hits = np.concatenate([[0], np.cumsum(right[order][::-1])])  # among the n strongest
    points = []
    for step in range(round(1 / STEP)):
        score = step * STEP
        count = len(scores) - int(np.searchsorted(scores[order], score, side="right"))
        hit = int(hits[count])
        precision = hit / count if count else 1.0
        recall = hit / objects if objects else 0.0
        f1 = 2 * hit / (count + objects) if count + objects else 0.0
        points.append(Operating(round(score, 2), count, precision, recall, f1))
    return points


def best_operating(points: Sequence[Operating]) -> Operating:
    """The one with the highest F1, of equal ones the one with the highest threshold."""
    return max(points, key=lambda point: (point.f1, point.score))
