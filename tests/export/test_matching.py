"""How candidates of two runtimes are matched: by overlap, whatever their slots."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clq_export.matching import image_deltas
from clq_serve.candidates import Candidates

MARGIN = 1e-3


def candidates(rows, slots=None):
    """[(box, score, label)] as the (K, ...) candidates of one image."""
    slots = slots or len(rows)
    found = Candidates(
        np.zeros((slots, 4), np.float32),
        np.zeros(slots, np.float32),
        np.zeros(slots, np.int64),
        np.zeros(slots, np.float32),
        np.ones(slots, np.float32),
    )
    for slot, (box, score, label) in enumerate(rows):
        found.boxes[slot], found.labels[slot] = box, label
        found.scores[slot] = found.cls_scores[slot] = score
    return found


BOX, FAR = (10, 10, 30, 30), (60, 60, 90, 80)


def test_a_moved_box_and_a_changed_score_are_both_measured():
    a = candidates([(BOX, 0.9, 1), (FAR, 0.5, 0)], 4)
    b = candidates([(FAR, 0.52, 0), ((10, 10, 30, 30.5), 0.9, 1)], 4)
    found = image_deltas(a, b, MARGIN)
    assert found.compared == 4
    assert found.score == pytest.approx(0.02, abs=1e-6)
    assert found.box_px == pytest.approx(0.5)
    assert found.labels_changed == 0


def test_another_class_at_the_same_place_is_no_partner_and_is_counted_on_both_sides():
    a, b = candidates([(BOX, 0.9, 1)], 4), candidates([(BOX, 0.9, 2)], 4)
    assert image_deltas(a, b, MARGIN).labels_changed == 2


def test_a_candidate_that_is_missing_is_counted_once():
    a = candidates([(BOX, 0.9, 1), (FAR, 0.5, 0)], 4)
    assert image_deltas(a, candidates([(BOX, 0.9, 1)], 4), MARGIN).labels_changed == 1
    assert image_deltas(candidates([(BOX, 0.9, 1)], 4), a, MARGIN).labels_changed == 1


def test_two_equal_boxes_need_two_partners():
    a = candidates([(BOX, 0.9, 1), (BOX, 0.9, 1)], 4)
    assert image_deltas(a, candidates([(BOX, 0.9, 1)], 4), MARGIN).labels_changed == 1


def test_what_may_have_been_cut_off_or_is_too_weak_does_not_count():
    full = candidates([(BOX, 0.9, 1), (FAR, 0.5, 0)])
    more = candidates([(BOX, 0.9, 1), ((0, 0, 5, 5), 0.5005, 0)])
    assert image_deltas(full, more, MARGIN).labels_changed == 0
    weak = candidates([(BOX, 0.9, 1), (FAR, 0.0105, 0)], 4)
    assert image_deltas(weak, candidates([(BOX, 0.9, 1)], 4), MARGIN).labels_changed == 0


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_order_of_slots_changes_nothing(data):
    count = data.draw(st.integers(1, 12))
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 100, (count, 2))
    rows = [
        ((*corner, *(corner + rng.uniform(5, 40, 2))), rng.uniform(0.05, 1), rng.integers(0, 3))
        for corner in corners
    ]
    a = candidates(rows, count + 1)
    order = rng.permutation(count + 1)
    b = Candidates(*(array[order] for array in a))
    found = image_deltas(a, b, MARGIN)
    assert (found.score, found.box_px, found.labels_changed) == (0.0, 0.0, 0)
    assert found.compared == 2 * count
