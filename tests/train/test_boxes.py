"""The box geometry against plain arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clq_train.boxes import DELTA_STDS, decode_deltas, paired_iou_giou, pairwise_iou

coordinate = st.floats(-50, 50, width=32)
side = st.floats(0.5, 60, width=32)
box = st.tuples(coordinate, coordinate, side, side).map(
    lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3])
)


def loop_iou_giou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    overlap = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return overlap / union, overlap / union - (hull - union) / hull


@settings(deadline=None)  # torch's first calls take longer than the others
@given(st.lists(st.tuples(box, box), min_size=1, max_size=5))
def test_overlaps_equal_plain_arithmetic(pairs):
    first, second = (torch.tensor(side) for side in zip(*pairs, strict=True))
    iou, giou = (values.tolist() for values in paired_iou_giou(first, second))
    table = pairwise_iou(first, second).tolist()
    for i, (a, b) in enumerate(pairs):
        expected_iou, expected_giou = loop_iou_giou(a, b)
        assert iou[i] == pytest.approx(expected_iou, abs=1e-4)
        assert giou[i] == pytest.approx(expected_giou, abs=1e-4)
        assert table[i][i] == pytest.approx(expected_iou, abs=1e-4)


def encode_deltas(boxes, anchors):
    """The regression outputs that decode to these boxes: (..., 4), (..., 4) -> (..., 4)."""
    size = anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., 2:] + boxes[..., :2] - anchors[..., 2:] - anchors[..., :2]) / 2 / size
    log_ratio = ((boxes[..., 2:] - boxes[..., :2]) / size).log()
    return torch.cat([shift, log_ratio], -1) / boxes.new_tensor(DELTA_STDS)


@settings(deadline=None)  # torch's first calls take longer than the others
@given(box, box)
def test_decoding_undoes_encoding(target, anchor):
    target, anchor = torch.tensor([target]), torch.tensor([anchor])
    # Beyond 1000/16 the coding clamps on purpose; the strategy above reaches 120.
    ratio = (target[:, 2:] - target[:, :2]) / (anchor[:, 2:] - anchor[:, :2])
    if ratio.max() < 62 and ratio.min() > 1 / 62:
        decoded = decode_deltas(encode_deltas(target, anchor), anchor)
        torch.testing.assert_close(decoded, target, atol=2e-3, rtol=1e-4)


def test_zero_deltas_are_the_anchor_and_huge_ones_stay_finite():
    anchor = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    torch.testing.assert_close(decode_deltas(torch.zeros(1, 4), anchor), anchor)
    huge = decode_deltas(torch.tensor([[0.0, 0.0, 1e4, -1e4]]), anchor)
    assert torch.isfinite(huge).all()
    assert (huge[0, 2] - huge[0, 0]).item() == pytest.approx(2000, rel=1e-4)
