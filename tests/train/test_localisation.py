"""What scores know about the true IoU, and what the suppression loses: against plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clq_serve.candidates import Candidates
from clq_serve.nms import ClassNms
from clq_train.localisation import (
    Rows,
    correlation,
    iou_losses,
    join,
    ranks,
    reliability,
    rows,
    suppression,
)
from clq_train.matching import overlaps
from clq_train.truth import ImageObjects

NMS = ClassNms()
NMS_IOU = 0.6
numbers = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=12)


def plain_pearson(first, second):
    mean_a, mean_b = sum(first) / len(first), sum(second) / len(second)
    shared = sum((a - mean_a) * (b - mean_b) for a, b in zip(first, second, strict=True))
    own_a = sum((a - mean_a) ** 2 for a in first)
    own_b = sum((b - mean_b) ** 2 for b in second)
    constant = len(set(first)) == 1 or len(set(second)) == 1
    return None if constant else shared / math.sqrt(own_a * own_b)


def plain_rank(values, value):
    """Mean of the places that the equal values have in the sorted list."""
    places = [i + 1 for i, other in enumerate(sorted(values)) if other == value]
    return sum(places) / len(places)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_correlations_with_ties_are_those_of_plain_loops(data):
    first = data.draw(numbers)
    second = data.draw(
        st.lists(st.sampled_from([0.1, 0.2, 0.9]), min_size=len(first), max_size=len(first))
    )
    own = [plain_rank(first, v) for v in first]
    assert ranks(np.array(first)).tolist() == own
    found = correlation(np.array(first), np.array(second))
    expected = plain_pearson(first, second)
    if expected is None:
        assert (found.pearson, found.spearman) == (None, None)
    else:
        other = [plain_rank(second, v) for v in second]
        assert found.pearson == pytest.approx(expected, abs=1e-9)
        assert found.spearman == pytest.approx(plain_pearson(own, other), abs=1e-9)


def test_spearman_sees_order_where_pearson_sees_a_curve():
    values = np.linspace(0.1, 1, 20)
    found = correlation(values, values**8)
    assert found.spearman == pytest.approx(1)
    assert found.pearson < 0.9
    assert correlation(values, -values).pearson == pytest.approx(-1)
    assert correlation(values[:1], values[:1]).pearson is None


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_is_that_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    quality, true = rng.uniform(0, 1, 200) ** 0.5, rng.uniform(0, 1, 200)
    quality[0], quality[1] = 1.0, 0.0  # the ends belong to the last and the first bin
    found = reliability(Rows(true, quality, true, true))
    error = 0.0
    for number in range(10):
        inside = [
            (q, t)
            for q, t in zip(quality, true, strict=True)
            if number / 10 <= q < (number + 1) / 10 or (number == 9 and q == 1)
        ]
        assert found.bins[number].boxes == len(inside)
        if inside:
            mean_q = sum(q for q, _ in inside) / len(inside)
            mean_t = sum(t for _, t in inside) / len(inside)
            error += len(inside) / 200 * abs(mean_q - mean_t)
            assert found.bins[number].mean_quality == pytest.approx(mean_q)
            assert found.bins[number].mean_true_iou == pytest.approx(mean_t)
    assert found.calibration_error == pytest.approx(error)
    assert found.bias == pytest.approx(sum(quality - true) / 200)


def test_a_perfect_quality_has_no_calibration_error_and_no_boxes_have_none():
    true = np.linspace(0, 1, 50)
    found = reliability(Rows(true, true, true, true))
    assert found.calibration_error == pytest.approx(0)
    assert found.bias == pytest.approx(0)
    none = reliability(join([]))
    assert (none.boxes, none.calibration_error, none.bias) == (0, None, None)
    assert none.bins[3].mean_quality is None


def random_case(seed, candidates=60):
    """Objects of two classes and many candidates around each, scores unrelated to their fit."""
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 200, (8, 2)), rng.uniform(20, 60, (8, 2))
    labels = rng.integers(0, 2, 8)
    crowd = np.arange(8) == 7
    objects = ImageObjects(np.concatenate([corner, corner + side], 1), labels, crowd)
    of = rng.integers(0, 8, candidates)
    boxes = objects.boxes[of] + rng.normal(0, 0.12, (candidates, 4)) * side[of][:, [0, 1, 0, 1]]
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    cls, quality = rng.uniform(0.1, 1, (2, candidates)).astype(np.float32)
    found = Candidates(boxes.astype(np.float32), cls * quality**0.3, labels[of], cls, quality)
    return found, objects


def plain_iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def plain_losses(candidates, ranking, objects):
    """Greedy suppression that remembers who suppressed whom, then the loss of each object."""
    order = sorted(range(len(ranking)), key=lambda i: -ranking[i])
    winner = {}
    for i in order:
        if i in winner:
            continue
        winner[i] = i
        for j in order:
            same = candidates.labels[i] == candidates.labels[j]
            if (
                j not in winner
                and same
                and plain_iou(candidates.boxes[i], candidates.boxes[j]) > NMS_IOU
            ):
                winner[j] = i
    losses = []
    for box, label, crowd in zip(objects.boxes, objects.labels, objects.crowd, strict=True):
        fits = {
            i: plain_iou(candidates.boxes[i], box) for i in order if candidates.labels[i] == label
        }
        if crowd or not fits or max(fits.values()) < 0.5:
            continue
        best = max(fits, key=fits.get)
        losses.append(fits[best] - fits[winner[best]])
    return losses


def losses_of(candidates, ranking, objects):
    kept = NMS(candidates.boxes, ranking, candidates.labels, NMS_IOU, 0.0, len(ranking))
    overlap = overlaps(candidates.boxes, candidates.labels, objects)
    return iou_losses(candidates, kept, overlap, objects, NMS_IOU)


@pytest.mark.parametrize("seed", range(8))
def test_what_the_suppression_loses_is_that_of_a_plain_loop(seed):
    candidates, objects = random_case(seed)
    for ranking in (candidates.scores, candidates.cls_scores):
        found = losses_of(candidates, ranking, objects)
        assert found == pytest.approx(plain_losses(candidates, ranking, objects), abs=1e-5)
        assert (found > 0.05).any()
        counted = suppression(found)
        assert counted.kept_worse == sum(loss > 0.05 for loss in found.tolist())
        assert (
            counted.share == counted.kept_worse / len(found) == counted.kept_worse / counted.objects
        )
        assert counted.mean_iou_loss == pytest.approx(sum(found) / len(found))


def test_a_ranking_that_is_the_true_iou_loses_nothing():
    candidates, objects = random_case(3)
    overlap = overlaps(candidates.boxes, candidates.labels, objects)[:, ~objects.crowd]
    perfect = (overlap.max(1) + 0.01).astype(np.float32)
    found = losses_of(candidates, perfect, objects)
    assert len(found) > 3
    assert found.max() == pytest.approx(0, abs=1e-6)


def test_a_worse_box_of_a_higher_score_is_told():
    objects = ImageObjects(np.array([[0.0, 0, 100, 100]]), np.array([0]), np.array([False]))
    boxes = np.array([[0, 0, 100, 70], [0, 0, 100, 100]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    both = Candidates(boxes, scores, np.array([0, 0]), scores, scores)
    assert suppression(losses_of(both, scores, objects)).mean_iou_loss == pytest.approx(0.3)
    assert suppression(losses_of(both, scores[::-1], objects)).kept_worse == 0
    other = both._replace(labels=np.array([1, 0]))  # another class suppresses nothing
    assert suppression(losses_of(other, scores, objects)).kept_worse == 0
    assert suppression(np.zeros(0)).share is None


def test_boxes_in_a_crowd_region_do_not_count():
    objects = ImageObjects(
        np.array([[0.0, 0, 50, 50], [100, 0, 200, 100]]), np.array([0, 0]), np.array([False, True])
    )
    boxes = np.array([[0, 0, 50, 40], [110, 10, 130, 30], [300, 0, 310, 10]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    found = Candidates(boxes, scores, np.zeros(3, np.int64), scores, scores)
    one = rows(found, overlaps(boxes, found.labels, objects), objects)
    assert one.scores == pytest.approx([0.9, 0.7])
    assert one.true_ious == pytest.approx([0.8, 0.0])
    assert one.on_object().scores == pytest.approx([0.9])
    assert join([one, one]).true_ious == pytest.approx([0.8, 0.0, 0.8, 0.0])
