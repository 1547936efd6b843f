"""Two lists of candidates are compared as sets; what may have been cut off does not count."""

import math

import numpy as np
import pytest

from clq_serve.candidates import Candidates
from clq_serve.compare import candidate_difference


def candidates(*rows: tuple[float, int, float]) -> Candidates:
    """One image; each row is (score, label, x of the box); the box is 10 px wide."""
    scores = np.array([[row[0] for row in rows]], np.float32)
    labels = np.array([[row[1] for row in rows]], np.int64)
    boxes = np.array([[[row[2], 0, row[2] + 10, 10] for row in rows]], np.float32)
    return Candidates(boxes.reshape(1, -1, 4), scores, labels, scores, np.ones_like(scores))


EMPTY = (0.0, 0, 0.0)


def test_equal_sets_in_another_order_do_not_differ() -> None:
    a = candidates((0.9, 1, 5), (0.9, 1, 50), (0.8, 2, 7), EMPTY)
    b = candidates((0.9, 1, 50), (0.9, 1, 5), (0.8, 2, 7), EMPTY)
    assert candidate_difference(a, b, 0.05) == (0.0, 0.0)


def test_the_largest_difference_of_each_kind_is_found() -> None:
    a = candidates((0.9, 1, 5), (0.8, 2, 7), EMPTY)
    b = candidates((0.89, 1, 5), (0.8, 2, 7.5), EMPTY)
    score, box_px = candidate_difference(a, b, 0.05)
    assert score == pytest.approx(0.01, abs=1e-6)
    assert box_px == pytest.approx(0.5)


@pytest.mark.parametrize("other", [(0.9, 2, 5.0), EMPTY])
def test_a_candidate_without_partner_is_infinitely_far(other: tuple[float, int, float]) -> None:
    a, b = candidates((0.9, 1, 5), EMPTY), candidates(other, EMPTY)
    assert candidate_difference(a, b, 0.05) == (math.inf, math.inf)
    assert candidate_difference(b, a, 0.05) == (math.inf, math.inf)


def test_two_equal_candidates_need_two_partners() -> None:
    a = candidates((0.9, 1, 5), (0.9, 1, 5), EMPTY)
    b = candidates((0.9, 1, 5), EMPTY, EMPTY)
    assert candidate_difference(a, b, 0.05) == (math.inf, math.inf)


def test_what_is_below_the_floor_does_not_count() -> None:
    a, b = candidates((0.9, 1, 5), (0.05, 1, 90), EMPTY), candidates((0.9, 1, 5), EMPTY, EMPTY)
    assert candidate_difference(a, b, 0.05) == (0.0, 0.0)
    assert candidate_difference(a, b, 0.03) == (math.inf, math.inf)


def test_what_may_have_been_cut_off_does_not_count() -> None:
    a = candidates((0.9, 1, 5), (0.501, 1, 90))  # the last slot is a close call
    b = candidates((0.9, 1, 5), (0.5, 1, 300))
    assert candidate_difference(a, b, 0.05) == (0.0, 0.0)
    assert candidate_difference(a, b, 0.05, margin=0.0005)[1] == pytest.approx(210)


def test_other_scores_count_too() -> None:
    a = candidates((0.9, 1, 5), EMPTY)
    b = a._replace(qualities=a.qualities - np.float32(0.25))
    assert candidate_difference(a, b, 0.05) == (0.25, 0.0)


def test_every_image_is_compared() -> None:
    a, b = candidates((0.9, 1, 5), EMPTY), candidates((0.9, 1, 6), EMPTY)
    two_a = Candidates(*(np.concatenate([x, x]) for x in a))
    two_b = Candidates(*(np.concatenate([x, y]) for x, y in zip(a, b, strict=True)))
    assert candidate_difference(two_a, two_b, 0.05) == (0.0, 1.0)
    with pytest.raises(ValueError, match="2 images on one side, 1 on the other"):
        candidate_difference(two_a, b, 0.05)


def test_nothing_equals_nothing() -> None:
    assert candidate_difference(candidates(EMPTY), candidates(EMPTY), 0.0) == (0.0, 0.0)
