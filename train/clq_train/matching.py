"""Which detection is on which object.

Letters: D boxes of a model in one image, M objects and crowd regions of the image.
"""

import numpy as np
import numpy.typing as npt
import torch

from clq_train.boxes import pairwise_iou
from clq_train.truth import ImageObjects

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

CROWD_SHARE = 0.5  # of a box that must lie in a crowd region to be excused by it, as at COCO's AP50


def overlaps(boxes: npt.NDArray, labels: Indices, objects: ImageObjects) -> Doubles:
    """How much each box overlaps each object of its class: (D, M) in [0, 1].

    boxes    (D, 4) x1 y1 x2 y2
    labels   (D,)
    returns  the IoU with an object, the share of the box that lies inside a crowd region (COCO's
             rule), and 0 with objects of other classes
    """
    found = iou(boxes, objects.boxes)
    if objects.crowd.any():
        area, region = _area(boxes)[:, None], _area(objects.boxes)[None]
        shared = found * (area + region) / (1 + found)  # the intersection, from the IoU
        found = np.where(objects.crowd, shared / np.maximum(area, 1e-9), found)
    return found * (labels[:, None] == objects.labels[None])


def iou(first: npt.NDArray, second: npt.NDArray) -> Doubles:
    """IoU of every box of one set with every box of another: (D, 4), (M, 4) -> (D, M)."""
    sides = (torch.from_numpy(np.asarray(boxes, np.float32)) for boxes in (first, second))
    return pairwise_iou(*sides).numpy().astype(np.float64)


def true_iou(overlap: Doubles, objects: ImageObjects) -> Doubles:
    """The highest IoU of each box with an object of its class, 0 without one: (D, M) -> (D,)."""
    return np.max(overlap * ~objects.crowd, axis=1, initial=0.0)


def excused(overlap: Doubles, objects: ImageObjects) -> Flags:
    """Which boxes lie in a crowd region of their class and on no object: (D, M) -> (D,)."""
    in_crowd = np.max(overlap * objects.crowd, axis=1, initial=0.0) >= CROWD_SHARE
    return in_crowd & (true_iou(overlap, objects) < CROWD_SHARE)


def match(overlap: Doubles, objects: ImageObjects, least_iou: float) -> Indices:
    """The object that each detection gets, by COCO's rule: (D,), -1 for none.

    overlap  (D, M) of detections by descending score

    Each detection takes the object of the highest overlap among those that are still free, if that
    is at least `least_iou`; of equal ones the last. A crowd region is taken only where no object
    is, and any number of times.
    """
    taken = np.zeros(overlap.shape[1], np.bool_)
    got = np.full(len(overlap), -1, np.int64)
    for row, values in enumerate(overlap):
        for candidates in (np.flatnonzero(~objects.crowd & ~taken), np.flatnonzero(objects.crowd)):
            if candidates.size and values[candidates].max() >= least_iou:
                last = candidates.size - 1 - int(values[candidates][::-1].argmax())
                got[row] = candidates[last]
                taken[got[row]] = True
                break
    return got


def _area(boxes: npt.NDArray) -> Doubles:
    return np.prod(np.asarray(boxes[:, 2:] - boxes[:, :2], np.float64), axis=1)
