"""Losses and scores against plain loops, and the eight combinations of the three switches."""

import itertools
import math
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clq_train.boxes import centerness, decode_deltas, paired_iou_giou
from clq_train.clq import (
    ClqHead,
    Objects,
    Predictions,
    anchors_for,
    atss_assign,
    criterion,
    focal_loss,
    log1mexp,
    log_ranking,
    quality_focal_loss,
)
from clq_train.config import HeadConfig

SIZES, STRIDES = ((8, 8), (4, 4)), (8, 16)
COMBINATIONS = list(itertools.product([False, True], repeat=3))


def head_config(qfl=True, lqe=True, align=True, norm="group", **options):
    return HeadConfig(
        channels=32,
        tower_depth=1,
        norm=norm,
        anchor_scale=4,
        qfl=qfl,
        lqe=lqe,
        align=align,
        **options,
    )


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@given(st.floats(-60, 60), st.floats(-60, 60), st.floats(0.1, 1))
def test_ranking_in_log_space_equals_the_product_of_the_paper(cls, quality, alpha):
    found = log_ranking(torch.tensor([cls]), torch.tensor(quality), alpha).exp().item()
    assert found == pytest.approx(sigmoid(cls) * sigmoid(quality) ** alpha, rel=1e-4, abs=1e-30)


@given(st.floats(-80, -1e-7))
def test_log1mexp_equals_the_formula_in_28_decimal_digits(x):
    found = log1mexp(torch.tensor(x, dtype=torch.float64)).item()
    assert found == pytest.approx(float((1 - Decimal(x).exp()).ln()), rel=1e-9, abs=1e-25)


def test_saturated_scores_keep_finite_losses_and_gradients():
    cls = torch.tensor([-200.0, -20.0, 0.0, 20.0, 200.0], requires_grad=True)
    quality = torch.tensor([200.0, 20.0, 0.0, -20.0, 200.0], requires_grad=True)
    for target in (0.0, 0.5, 1.0):
        score = log_ranking(cls[:, None], quality, 0.3)
        loss = quality_focal_loss(score, torch.full_like(score, target))
        gradients = torch.autograd.grad(loss, [cls, quality])
        assert torch.isfinite(loss)
        assert all(torch.isfinite(g).all() for g in gradients)


def test_quality_focal_loss_equals_the_plain_loop():
    torch.manual_seed(0)
    cls, quality, target = torch.randn(7, 3), torch.randn(7), torch.rand(7, 3)
    expected = 0.0
    for i in range(7):
        for c in range(3):
            p = sigmoid(cls[i, c].item()) * sigmoid(quality[i].item()) ** 0.3
            y = target[i, c].item()
            entropy = -(y * math.log(p) + (1 - y) * math.log(1 - p))
            expected += abs(y - p) ** 2 * entropy
    found = quality_focal_loss(log_ranking(cls, quality, 0.3), target)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_focal_loss_equals_the_plain_loop():
    torch.manual_seed(0)
    logits, positive = torch.randn(6, 2), (torch.rand(6, 2) > 0.7).float()
    expected = 0.0
    for x, y in zip(logits.flatten().tolist(), positive.flatten().tolist(), strict=True):
        p = sigmoid(x)
        chance, weight = (p, 0.25) if y else (1 - p, 0.75)
        expected += -weight * (1 - chance) ** 2 * math.log(chance)
    assert focal_loss(logits, positive).item() == pytest.approx(expected, rel=1e-4)


def random_case(lqe, objects):
    torch.manual_seed(1)
    anchors = anchors_for(SIZES, STRIDES, 4.0, torch.device("cpu"))
    count = sum(len(a) for a in anchors)
    batch = len(objects)
    predictions = Predictions(
        torch.randn(batch, count, 3),
        torch.randn(batch, count, 4) * 0.5,
        torch.randn(batch, count) if lqe else None,
    )
    return predictions, anchors


TWO_IMAGES = [
    Objects(torch.tensor([[4.0, 6.0, 40.0, 38.0], [20.0, 22.0, 60.0, 50.0]]), torch.tensor([2, 0])),
    Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
]


@pytest.mark.parametrize(
    ("qfl", "lqe", "options"),
    [
        (True, True, {}),
        (True, False, {}),
        (False, True, {}),
        (True, True, {"iou_target": "anchor"}),
        (True, True, {"quality_target": "plain"}),
        (True, True, {"reg_weight": "iou"}),
        (False, False, {"centerness": True, "alpha": 1.0, "reg_weight": "centerness"}),
    ],
)
def test_criterion_equals_the_plain_loop(qfl, lqe, options):
    config = head_config(qfl, lqe, **options)
    branch = lqe or config.centerness
    predictions, anchors = random_case(branch, TWO_IMAGES)
    flat = torch.cat(anchors)
    cls_sum = reg_sum = lqe_sum = weight_sum = 0.0
    positives = 0
    for b, objects in enumerate(TWO_IMAGES):
        match = atss_assign(anchors, objects.boxes).tolist()
        for a, m in enumerate(match):
            target = [0.0, 0.0, 0.0]
            q = sigmoid(predictions.quality[b, a].item()) if branch else 1.0
            if m >= 0:
                positives += 1
                box = decode_deltas(predictions.deltas[b, a], flat[a])
                iou, giou = paired_iou_giou(box[None], objects.boxes[m][None])
                iou, giou = iou.item(), giou.item()
                if config.iou_target == "anchor":
                    iou = paired_iou_giou(flat[a][None], objects.boxes[m][None])[0].item()
                central = centerness(flat[a][None], objects.boxes[m][None]).item()
                weight = {"none": 1.0, "iou": iou, "centerness": central}[config.reg_weight]
                weight_sum += weight
                reg_sum += 2 * weight * (1 - giou)
                goal = central if config.centerness else iou
                lqe_sum += -(goal * math.log(q) + (1 - goal) * math.log(1 - q)) if branch else 0.0
                soft = iou**config.alpha if lqe and config.quality_target == "powered" else iou
                target[objects.labels[m]] = soft if qfl else 1.0
            for c in range(3):
                p = sigmoid(predictions.cls[b, a, c].item())
                y = target[c]
                if qfl:
                    p *= q**config.alpha if lqe else 1.0
                    entropy = -(y * math.log(p) + (1 - y) * math.log(1 - p))
                    cls_sum += abs(y - p) ** 2 * entropy
                else:
                    chance, weight = (p, 0.25) if y else (1 - p, 0.75)
                    cls_sum += -weight * (1 - chance) ** 2 * math.log(chance)
    losses = criterion(predictions, anchors, TWO_IMAGES, config)
    assert positives > 0
    assert losses["positives"].item() == positives
    assert losses["cls"].item() == pytest.approx(cls_sum / positives, rel=1e-4)
    assert losses["reg"].item() == pytest.approx(reg_sum / max(weight_sum, 1), rel=1e-4)
    named = "centerness" if config.centerness else "lqe"
    assert set(losses) == {"cls", "reg", "positives"} | ({named} if branch else set())
    if branch:
        assert losses[named].item() == pytest.approx(lqe_sum / positives, rel=1e-4)


def test_a_batch_without_any_object_trains_the_background_alone():
    predictions, anchors = random_case(True, [TWO_IMAGES[1]])
    losses = criterion(predictions, anchors, [TWO_IMAGES[1]], head_config())
    assert losses["reg"].item() == 0
    assert losses["lqe"].item() == 0
    assert losses["cls"].item() > 0
    assert losses["positives"].item() == 1


@pytest.mark.parametrize(("qfl", "lqe", "align"), COMBINATIONS)
@pytest.mark.parametrize("autocast", [False, True])
def test_every_combination_of_switches_trains_every_parameter(qfl, lqe, align, autocast):
    torch.manual_seed(0)
    head = ClqHead(head_config(qfl, lqe, align), classes=3, levels=2)
    levels = [torch.randn(2, 32, *size) for size in SIZES]
    anchors = anchors_for(SIZES, STRIDES, 4.0, torch.device("cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses = criterion(head(levels), anchors, TWO_IMAGES, head_config(qfl, lqe, align))
    total = sum(v for k, v in losses.items() if k != "positives")
    assert total.dtype == torch.float32
    total.backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_alignment_does_not_send_gradients_into_the_regression():
    torch.manual_seed(0)
    head = ClqHead(head_config(), classes=3, levels=1)
    out = head([torch.randn(1, 32, 8, 8)])
    out.cls.sum().backward()
    assert head.reg.weight.grad is None
    assert head.align.offset.weight.grad.abs().sum() > 0


def test_a_new_head_predicts_one_percent_everywhere():
    torch.manual_seed(0)
    head = ClqHead(head_config(), classes=3, levels=1)
    scores = head([torch.randn(1, 32, 8, 8)]).cls.sigmoid()
    assert scores.mean().item() == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_both_norms_give_the_same_shapes(norm):
    head = ClqHead(head_config(norm=norm), classes=3, levels=2)
    out = head([torch.randn(2, 32, *size) for size in SIZES])
    assert out.cls.shape == (2, 80, 3)
    assert out.deltas.shape == (2, 80, 4)
    assert out.quality.shape == (2, 80)
