"""Which detection is on which object: plain loops, and pycocotools, say the same."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clq_train.matching import excused, match, overlaps, true_iou
from clq_train.truth import ImageObjects

NEAR = 1e-6


def random_image(seed, detections=30, objects=12, classes=2, crowds=True):
    """Objects, some of them crowds, and boxes near them by descending score."""
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 80, (objects, 2)), rng.uniform(10, 60, (objects, 2))
    boxes = np.concatenate([corner, corner + side], 1)
    labels = rng.integers(0, classes, objects)
    truth = ImageObjects(boxes, labels, crowds & (rng.random(objects) < 0.3))
    of = rng.integers(0, objects, detections)
    near = np.concatenate([corner[of], corner[of] + side[of]], 1) + rng.normal(
        0, 4, (detections, 4)
    )
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    same = rng.random(detections) < 0.8
    return near.astype(np.float32), np.where(same, labels[of], rng.integers(0, classes)), truth


def shared_area(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def plain_overlap(box, label, objects, number):
    if label != objects.labels[number]:
        return 0.0
    shared = shared_area(box, objects.boxes[number])
    if objects.crowd[number]:
        return shared / area(box)
    return shared / (area(box) + area(objects.boxes[number]) - shared)


@pytest.mark.parametrize("seed", range(4))
def test_overlap_is_iou_with_an_object_and_the_share_inside_a_crowd(seed):
    boxes, labels, objects = random_image(seed)
    found = overlaps(boxes, labels, objects)
    for row, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        for column in range(len(objects.boxes)):
            expected = plain_overlap(box, label, objects, column)
            assert found[row, column] == pytest.approx(expected, abs=NEAR)


@pytest.mark.parametrize("seed", range(4))
def test_true_iou_and_excuse_follow_their_definitions(seed):
    boxes, labels, objects = random_image(seed)
    overlap = overlaps(boxes, labels, objects)
    ious, in_crowd = true_iou(overlap, objects), excused(overlap, objects)
    assert in_crowd.any()
    for row, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        best, region = 0.0, 0.0
        for column in range(len(objects.boxes)):
            value = plain_overlap(box, label, objects, column)
            if objects.crowd[column]:
                region = max(region, value)
            else:
                best = max(best, value)
        assert ious[row] == pytest.approx(best, abs=NEAR)
        assert in_crowd[row] == (best < 0.5 <= region)


def plain_match(overlap, objects, least_iou):
    """COCO's rule, object by object."""
    taken, got = set(), []
    for values in overlap:
        best, chosen = least_iou, -1
        for column, value in enumerate(values):
            if not objects.crowd[column] and column not in taken and value >= best:
                best, chosen = value, column
        if chosen >= 0:
            taken.add(chosen)
        else:
            best = least_iou
            for column, value in enumerate(values):
                if objects.crowd[column] and value >= best:
                    best, chosen = value, column
        got.append(chosen)
    return got


def match_by_pycocotools(boxes, labels, objects, scores, least_iou):
    """Index of each detection's object, -1 for none."""
    wide = np.asarray(objects.boxes).copy()
    wide[:, 2:] -= wide[:, :2]
    tree = {
        "info": {},
        "images": [{"id": 1}],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": [
            {
                "id": number + 1,
                "image_id": 1,
                "category_id": int(label) + 1,
                "bbox": box.tolist(),
                "area": float(box[2] * box[3]),
                "iscrowd": int(crowd),
            }
            for number, (box, label, crowd) in enumerate(
                zip(wide, objects.labels, objects.crowd, strict=True)
            )
        ],
    }
    results = [
        {
            "image_id": 1,
            "category_id": int(label) + 1,
            "bbox": [*map(float, box[:2]), float(box[2] - box[0]), float(box[3] - box[1])],
            "score": float(score),
        }
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = tree
        coco.createIndex()
        counting = COCOeval(coco, coco.loadRes(results), "bbox")
        counting.params.iouThrs = np.array([least_iou])
        counting.params.areaRng = [counting.params.areaRng[0]]
        counting.evaluate()
    got = np.full(len(boxes), -1)
    for image in counting.evalImgs:
        if image is not None:
            got[np.array(image["dtIds"], int) - 1] = image["dtMatches"][0].astype(int) - 1
    return got


@pytest.mark.parametrize("seed", range(6))
def test_matching_is_that_of_a_plain_loop_and_of_pycocotools(seed):
    boxes, labels, objects = random_image(seed)
    overlap = overlaps(boxes, labels, objects)
    got = match(overlap, objects, 0.5)
    assert got.tolist() == plain_match(overlap, objects, 0.5)
    scores = np.linspace(0.9, 0.1, len(boxes))
    assert got.tolist() == match_by_pycocotools(boxes, labels, objects, scores, 0.5).tolist()
    assert -1 in got
    assert len(set(got.tolist())) > 3


def test_of_equal_overlaps_the_last_object_is_taken():
    box = np.array([[0.0, 0, 10, 10]])
    twice = ImageObjects(np.repeat(box, 2, 0), np.zeros(2, int), np.zeros(2, bool))
    three = overlaps(np.repeat(box, 3, 0), np.zeros(3, int), twice)
    assert match(three, twice, 0.5).tolist() == plain_match(three, twice, 0.5) == [1, 0, -1]


def test_an_image_without_objects_or_without_boxes_is_no_exception():
    boxes, labels, objects = random_image(0)
    nothing = ImageObjects(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool))
    empty = overlaps(boxes, labels, nothing)
    assert match(empty, nothing, 0.5).tolist() == [-1] * len(boxes)
    assert true_iou(empty, nothing).tolist() == [0.0] * len(boxes)
    assert not excused(empty, nothing).any()
    assert match(overlaps(boxes[:0], labels[:0], objects), objects, 0.5).tolist() == []
