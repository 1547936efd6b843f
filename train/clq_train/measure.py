"""COCO's metrics of detections, counted by faster-coco-eval (a test: pycocotools counts the same).

Letters: T 10 IoU thresholds 0.50, 0.55 .. 0.95, R 101 recalls 0.00 .. 1.00, C classes, S sizes of
objects (all, small, medium, large), M numbers of detections an image (1, 10, 100).
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from clq_train.truth import Tree, only_images

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
AP50, AP75 = IOU_THRESHOLDS.index(0.5), IOU_THRESHOLDS.index(0.75)
ALL, SMALL, MEDIUM, LARGE = range(4)
MAX_1, MAX_10, MAX_100 = range(3)

SMALL_PX, LARGE_PX = 32, 96  # sides of the squares between small, medium and large

Result = dict[str, Any]  # one detection in COCO's format; category_id is the label
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """COCO metrics of one class, 100 detections an image; -1 where it has no objects."""

    objects: int
    ap: float
    ap50: float
    ap75: float
    ar_100: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """COCO metrics in [0, 1]; -1 where there is nothing to measure.

    per_group  AP by the value of a key of the image records; empty if not asked
    """

    images: int
    objects: int  # without crowd regions
    objects_small: int
    objects_medium: int
    objects_large: int
    ap: float  # mean over IoU 0.50 .. 0.95 and classes, 100 detections an image
    ap50: float
    ap75: float
    ap_small: float  # objects under 32 x 32 px
    ap_medium: float
    ap_large: float  # objects from 96 x 96 px on
    ar_1: float  # average recall with 1, 10 and 100 detections an image
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    ap_by_iou: list[float]  # at each of IOU_THRESHOLDS
    per_class: dict[str, ClassFigures]
    per_group: dict[str, float]


class Counted(NamedTuple):
    """Precision at each recall, and the recall that is reached; -1 where a class has no objects."""

    precision: Doubles  # (T, R, C, S, M)
    recall: Doubles  # (T, C, S, M)


def measure(truth: Tree, results: list[Result], classes: list[str]) -> Evaluation:
    """COCO's metrics of the results that are about the tree's images.

    truth  as ground_truth gives it
    """
    return summarise(truth, count(truth, results), classes)


def group_aps(truth: Tree, results: list[Result], groups: dict[str, set[int]]) -> dict[str, float]:
    """AP of each group of images, given as sets of image ids."""
    return {name: measure(only_images(truth, ids), results, []).ap for name, ids in groups.items()}


def count(truth: Tree, results: list[Result]) -> Counted:
    """The tables behind COCO's metrics, of the results that are about the tree's images."""
    ids = {image["id"] for image in truth["images"]}
    # Copies, because the evaluator writes into what it is given.
    own = [{**result} for result in results if result["image_id"] in ids]
    objects = {**truth, "annotations": [{**entry} for entry in truth["annotations"]]}
    coco = COCO(objects)
    counting = COCOeval_faster(coco, coco.loadRes(own), "bbox")
    counting.evaluate()
    counting.accumulate()
    return Counted(counting.eval["precision"], counting.eval["recall"])


def summarise(truth: Tree, counted: Counted, classes: list[str]) -> Evaluation:
    """COCO's means over the tables."""
    single = [entry for entry in truth["annotations"] if not entry["iscrowd"]]
    objects = Counter(entry["category_id"] for entry in single)
    small, large = (sum(e["area"] < side**2 for e in single) for side in (SMALL_PX, LARGE_PX))
    at_most_100 = counted.precision[..., MAX_100]  # (T, R, C, S)
    precision, recall = at_most_100[..., ALL], counted.recall[:, :, ALL]  # (T, R, C), (T, C, M)
    per_class = {
        name: ClassFigures(
            objects=objects[label],
            ap=mean_measured(precision[:, :, label]),
            ap50=mean_measured(precision[AP50, :, label]),
            ap75=mean_measured(precision[AP75, :, label]),
            ar_100=mean_measured(recall[:, label, MAX_100]),
        )
        for label, name in enumerate(classes)
    }
    return Evaluation(
        images=len(truth["images"]),
        objects=len(single),
        objects_small=small,
        objects_medium=large - small,
        objects_large=len(single) - large,
        ap=mean_measured(precision),
        ap50=mean_measured(precision[AP50]),
        ap75=mean_measured(precision[AP75]),
        ap_small=mean_measured(at_most_100[..., SMALL]),
        ap_medium=mean_measured(at_most_100[..., MEDIUM]),
        ap_large=mean_measured(at_most_100[..., LARGE]),
        ar_1=mean_measured(recall[..., MAX_1]),
        ar_10=mean_measured(recall[..., MAX_10]),
        ar_100=mean_measured(recall[..., MAX_100]),
        ar_small=mean_measured(counted.recall[:, :, SMALL, MAX_100]),
        ar_medium=mean_measured(counted.recall[:, :, MEDIUM, MAX_100]),
        ar_large=mean_measured(counted.recall[:, :, LARGE, MAX_100]),
        ap_by_iou=[mean_measured(at_iou) for at_iou in precision],
        per_class=per_class,
        per_group={},
    )


def mean_measured(table: Doubles) -> float:
    """Mean of the entries that are not -1, or -1 if there are none."""
    measured = table[table > -1]
    return float(measured.mean()) if measured.size else -1.0
