"""What the scores know about how well a box sits, and what the suppression makes of it.

The true IoU of a box is its highest IoU with an object of its class in its image, 0 if there is
none. A box is on an object from a true IoU of 0.1 on; boxes in crowd regions do not count.
Letters: D boxes of a model, of one image or of all; M objects of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clq_serve.candidates import Candidates
from clq_serve.detector import Detections
from clq_train.matching import Doubles, Indices, excused, iou, true_iou
from clq_train.truth import ImageObjects

# The background threshold of TIDE (Bolya et al. 2020, arXiv:2008.08115).
ON_OBJECT_IOU = 0.1
REACHED_IOU = 0.5  # an object counts for the suppression if a candidate overlaps it by this much
WORSE_BY_IOU = 0.05
BINS = 10


@dataclass(frozen=True, slots=True)
class Rows:
    """Boxes of all images, one row each: three scores and the true IoU, (D,), all in [0, 1]."""

    cls_scores: Doubles
    qualities: Doubles
    scores: Doubles
    true_ious: Doubles

    def on_object(self) -> "Rows":
        """Only the boxes that are on an object."""
        chosen = self.true_ious >= ON_OBJECT_IOU
        return Rows(
            self.cls_scores[chosen],
            self.qualities[chosen],
            self.scores[chosen],
            self.true_ious[chosen],
        )


@dataclass(frozen=True, slots=True)
class Correlation:
    """In [-1, 1]; None where one side is constant or there are fewer than two boxes."""

    pearson: float | None
    spearman: float | None


@dataclass(frozen=True, slots=True)
class Correlations:
    """Of each score with the true IoU of the same boxes."""

    boxes: int
    cls_score: Correlation
    quality: Correlation
    ranking_score: Correlation


@dataclass(frozen=True, slots=True)
class Bin:
    """The boxes whose quality is in [low, high); the means are None where there are none."""

    low: float
    high: float
    boxes: int
    mean_quality: float | None
    mean_true_iou: float | None


@dataclass(frozen=True, slots=True)
class Reliability:
    """Quality, the predicted IoU, against the true one.

    calibration_error  mean over the boxes of |mean quality - mean true IoU| of their bin; None
                       without boxes
    bias               mean quality - mean true IoU: above 0, the model thinks too well of its boxes
    """

    boxes: int
    calibration_error: float | None
    bias: float | None
    bins: list[Bin]


@dataclass(frozen=True, slots=True)
class Suppression:
    """How the suppression treats the best box of each object.

    objects       with a candidate of their class that overlaps them by 0.5
    kept_worse    of these, how many lost their best candidate to a box whose IoU with the object is
                  more than 0.05 lower
    share         kept_worse / objects, None without objects
    mean_iou_loss IoU with the object of its best candidate minus that of the box which was kept in
                  its place, 0 where the best was kept; mean over the objects
    """

    objects: int
    kept_worse: int
    share: float | None
    mean_iou_loss: float | None


def rows(found: Candidates | Detections, overlap: Doubles, objects: ImageObjects) -> Rows:
    """The boxes of one image beside their true IoU, without those in crowd regions.

    overlap  (D, M) as matching.overlaps gives it
    """
    chosen = ~excused(overlap, objects)
    three = (found.cls_scores, found.qualities, found.scores)
    scores = (np.asarray(values[chosen], np.float64) for values in three)
    return Rows(*scores, true_iou(overlap, objects)[chosen])


def join(parts: Sequence[Rows]) -> Rows:
    """The rows of all images."""
    names = ("cls_scores", "qualities", "scores", "true_ious")
    empty = np.zeros(0)
    return Rows(*(np.concatenate([empty, *(getattr(p, name) for p in parts)]) for name in names))


def correlations(of: Rows) -> Correlations:
    """Of class score, quality and ranking score with the true IoU."""
    three = (of.cls_scores, of.qualities, of.scores)
    return Correlations(len(of.scores), *(correlation(x, of.true_ious) for x in three))


def correlation(first: Doubles, second: Doubles) -> Correlation:
    """Pearson's coefficient of the values, and of their ranks, which is Spearman's."""
    return Correlation(_pearson(first, second), _pearson(ranks(first), ranks(second)))


def ranks(values: Doubles) -> Doubles:
    """Ranks from 1; equal values share the mean of theirs."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[where]


def reliability(of: Rows) -> Reliability:
    """Quality against true IoU in ten bins of equal width.

    Source: the expected calibration error of Guo et al. 2017 (arXiv:1706.04599), equation 3, with
    the true IoU in place of accuracy.
    """
    where = np.minimum((of.qualities * BINS).astype(np.int64), BINS - 1)
    bins, gaps = [], 0.0
    for number in range(BINS):
        quality, true = of.qualities[where == number], of.true_ious[where == number]
        means = (float(quality.mean()), float(true.mean())) if quality.size else (None, None)
        bins.append(Bin(number / BINS, (number + 1) / BINS, len(quality), *means))
        gaps += abs(float((quality - true).sum()))
    count = len(of.qualities)
    if not count:
        return Reliability(0, None, None, bins)
    return Reliability(count, gaps / count, float((of.qualities - of.true_ious).mean()), bins)


def iou_losses(
    candidates: Candidates, kept: Indices, overlap: Doubles, objects: ImageObjects, nms_iou: float
) -> Doubles:
    """What the suppression costs each object that a candidate reaches, in IoU: (O,), O <= M.

    candidates  (D, ...) of one image, in pixels of the image
    kept        the indices of those that were not suppressed, by descending score; no number of
                detections limits them
    overlap     (D, M) as matching.overlaps gives it
    nms_iou     threshold of the suppression

    The loss is that of Suppression.mean_iou_loss. The box that was kept in the best one's place is
    the highest ranked one that suppresses it.
    """
    losses = []
    for column in overlap[:, ~objects.crowd].T:
        best = column.max(initial=0.0)
        if best < REACHED_IOU:
            continue
        if column[kept].max() == best:
            losses.append(0.0)
        else:
            winner = _suppressor(candidates, int(column.argmax()), kept, nms_iou)
            losses.append(best - column[winner])
    return np.array(losses, np.float64)


def suppression(losses: Doubles) -> Suppression:
    """The figures of the losses of all objects, (O,)."""
    if not losses.size:
        return Suppression(0, 0, None, None)
    worse = int((losses > WORSE_BY_IOU).sum())
    return Suppression(len(losses), worse, worse / len(losses), float(losses.mean()))


def _suppressor(candidates: Candidates, box: int, kept: Indices, nms_iou: float) -> int:
    """The first of the kept boxes, which are in their order, that suppresses a box of its class."""
    rivals = kept[candidates.labels[kept] == candidates.labels[box]]
    shared = iou(candidates.boxes[rivals], candidates.boxes[[box]])[:, 0]
    # At the threshold itself the kernel may have rounded to the other side.
    return int(rivals[np.argmax(shared > min(nms_iou, float(shared.max()) - 1e-9))])


def _pearson(first: Doubles, second: Doubles) -> float | None:
    if first.size < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    a, b = first - first.mean(), second - second.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
