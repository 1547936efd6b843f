"""The choice of candidates, which export traces, against a plain loop over all pairs."""

import pytest
import torch

from clq_train.boxes import decode_deltas
from clq_train.clq import Predictions, anchors_for, select_candidates

SIZES, STRIDES = ((6, 5), (3, 3), (1, 2)), (8, 16, 32)


def case(seed, quality=True, batch=2, classes=3):
    generator = torch.Generator().manual_seed(seed)
    anchors = anchors_for(SIZES, STRIDES, 4.0, torch.device("cpu"))
    count = sum(len(a) for a in anchors)
    predictions = Predictions(
        torch.randn(batch, count, classes, generator=generator),
        torch.randn(batch, count, 4, generator=generator),
        torch.randn(batch, count, generator=generator) if quality else None,
    )
    return predictions, anchors


def loop_candidates(predictions, anchors, image, alpha, per_level, count):
    """(score, label, anchor) of the best pairs, by sorting every pair of every level."""
    chosen, start = [], 0
    for level in anchors:
        pairs = []
        for a in range(start, start + len(level)):
            q = 1.0
            if predictions.quality is not None:
                q = predictions.quality[image, a].double().sigmoid().item() ** alpha
            for c, logit in enumerate(predictions.cls[image, a].double().sigmoid().tolist()):
                pairs.append((logit * q, c, a))
        chosen += sorted(pairs, reverse=True)[:per_level]
        start += len(level)
    return sorted(chosen, reverse=True)[:count]


@pytest.mark.parametrize("quality", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_candidates_equal_the_plain_loop(seed, quality):
    predictions, anchors = case(seed, quality)
    found = select_candidates(predictions, anchors, alpha=0.3, per_level=20, count=50)
    flat = torch.cat(anchors)
    for image in range(2):
        expected = loop_candidates(predictions, anchors, image, 0.3, 20, 50)
        filled = len(expected)
        assert (found.scores[image, filled:] == 0).all()
        for slot, (score, label, anchor) in enumerate(expected):
            box = decode_deltas(predictions.deltas[image, anchor], flat[anchor])
            assert found.scores[image, slot].item() == pytest.approx(score, rel=1e-5)
            assert found.labels[image, slot].item() == label
            torch.testing.assert_close(found.boxes[image, slot], box)
            assert found.cls_scores[image, slot].item() == pytest.approx(
                predictions.cls[image, anchor, label].sigmoid().item(), rel=1e-5
            )
            if quality:
                assert found.qualities[image, slot].item() == pytest.approx(
                    predictions.quality[image, anchor].sigmoid().item(), rel=1e-5
                )
            else:
                assert found.qualities[image, slot].item() == 1


def test_the_number_of_slots_is_fixed_however_small_the_image():
    predictions, anchors = case(0)
    found = select_candidates(predictions, anchors, alpha=0.3, per_level=1000, count=1000)
    assert found.boxes.shape == (2, 1000, 4)
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    assert torch.isfinite(found.boxes).all()


def test_an_image_gets_the_same_candidates_alone_and_in_a_batch():
    predictions, anchors = case(3)
    both = select_candidates(predictions, anchors, 0.3, 20, 50)
    alone = select_candidates(Predictions(*(t[1:] for t in predictions)), anchors, 0.3, 20, 50)
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(a[1:], b, rtol=0, atol=0)
