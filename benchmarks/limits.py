"""What holds a model's AP down: AP after each kind of error is mended by the truth.

    clq-train eval BUNDLE --config CONFIG --split test --save-results FOUND.json data.root=DATA
    python benchmarks/limits.py FOUND.json CONFIG --split test data.root=DATA

The kinds are those of TIDE (Bolya et al. 2020, arXiv:2008.08115), with its IoU thresholds of 0.1
and 0.5; each is mended alone. A row far above the first is what to work on.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from clq_serve.detector import Detections
from clq_train.assess import RIGHT_IOU
from clq_train.coco import read_sound_split
from clq_train.config import load_config
from clq_train.localisation import ON_OBJECT_IOU
from clq_train.matching import iou, match, overlaps
from clq_train.measure import measure
from clq_train.results import coco_results, load_results, picked
from clq_train.truth import ImageObjects, Tree, objects_of, truth_of


class Judged:
    """The detections of one image beside its objects.

    overlap  (D, M) IoU, whatever the classes
    got      (D,) index of the object that each has by COCO's rule at RIGHT_IOU, or -1
    """

    def __init__(self, found: Detections, objects: ImageObjects) -> None:
        self.found, self.objects = found, objects
        self.overlap = iou(found.boxes, objects.boxes)
        own = overlaps(found.boxes, found.labels, objects)
        self.got = match(own, objects, RIGHT_IOU)
        self.same = own > 0

    def free(self, allowed: np.ndarray, low: float, high: float) -> dict[int, int]:
        """Wrong detections -> the free object that each overlaps most, by IoU in [low, high).

        allowed  (D, M) pairs that count; of several detections of one object, the first has it
        """
        taken, given = set(self.got[self.got >= 0].tolist()), {}
        values = np.where(allowed & (self.overlap >= low) & (self.overlap < high), self.overlap, 0)
        for row in np.flatnonzero(self.got < 0):
            column = int(values[row].argmax()) if values.shape[1] else 0
            if values[row].any() and column not in taken:
                taken.add(column)
                given[int(row)] = column
        return given

    def reached(self) -> np.ndarray:
        """(M,) whether a detection has the object, or would if its class or box were mended."""
        place, near = self.overlap >= RIGHT_IOU, self.overlap >= ON_OBJECT_IOU
        return (place | (self.same & near)).any(0)


def with_right_class(image: Judged) -> Detections:
    """Right place, wrong class."""
    labels = image.found.labels.copy()
    for row, column in image.free(~image.same, RIGHT_IOU, np.inf).items():
        labels[row] = image.objects.labels[column]
    return replace(image.found, labels=labels)


def with_right_place(image: Judged) -> Detections:
    """Right class, IoU of 0.1 to 0.5: the box becomes the object's."""
    boxes = image.found.boxes.copy()
    for row, column in image.free(image.same, ON_OBJECT_IOU, RIGHT_IOU).items():
        boxes[row] = image.objects.boxes[column]
    return replace(image.found, boxes=boxes)


def with_exact_boxes(image: Judged) -> Detections:
    """What is right at an IoU of 0.5 gets the object's own box."""
    boxes = image.found.boxes.copy()
    right = image.got >= 0
    boxes[right] = image.objects.boxes[image.got[right]]
    return replace(image.found, boxes=boxes)


def without_doubles(image: Judged) -> Detections:
    """On an object of its class that another detection has."""
    best = np.max(image.overlap * image.same, axis=1, initial=0.0)
    return picked(image.found, (image.got >= 0) | (best < RIGHT_IOU))


def without_background(image: Judged) -> Detections:
    """On no object of any class."""
    best = np.max(image.overlap, axis=1, initial=0.0)
    return picked(image.found, (image.got >= 0) | (best >= ON_OBJECT_IOU))


def without_wrong(image: Judged) -> Detections:
    """All wrong ones go."""
    return picked(image.found, image.got >= 0)


MENDED: dict[str, Callable[[Judged], Detections]] = {
    "as found": lambda image: image.found,
    "wrong class, right place: class mended": with_right_class,
    "right class, IoU 0.1 to 0.5: box mended": with_right_place,
    "right at IoU 0.5: box made exact": with_exact_boxes,
    "second boxes of one object left out": without_doubles,
    "boxes on no object left out": without_background,
    "all wrong boxes left out": without_wrong,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("found", type=Path, help="detections in COCO's result format")
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--split", default="test")
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    split = read_sound_split(config.data, args.split)
    truth = truth_of(split, config.data.classes)
    objects = objects_of(truth)
    found = load_results(args.found, list(objects), split.labels)
    images = {name: Judged(found[name], objects[name]) for name in objects}
    classes = config.data.classes
    print(f"{args.split}: {len(objects)} images, {len(truth['annotations'])} objects")
    print(f"{'':40} {'AP':>5} {'':5} {'AP50':>5} {'AP75':>5}")
    first = 0.0
    rows = [
        (name, truth, [r for i, one in images.items() for r in coco_results(i, mend(one))])
        for name, mend in MENDED.items()
    ]
    rows.append(("objects that nothing is on left out", _found_only(truth, images), rows[0][2]))
    for name, tree, results in rows:
        figures = measure(tree, results, classes)
        first = first or figures.ap
        gain = f"{100 * (figures.ap - first):+5.1f}" if figures.ap != first else ""
        print(
            f"{name:40} {100 * figures.ap:5.1f} {gain:5} {100 * figures.ap50:5.1f} "
            f"{100 * figures.ap75:5.1f}"
        )


def _found_only(truth: Tree, images: dict[int, Judged]) -> Tree:
    """The truth without the objects that no detection has, or would have if it were mended."""
    reached = {name: iter(one.reached()) for name, one in images.items()}
    left = [entry for entry in truth["annotations"] if next(reached[entry["image_id"]])]
    return {**truth, "annotations": left}


if __name__ == "__main__":
    main()
