"""The CLQ head, assignment, losses, scores and decoding, in the order in which the data moves.

Letters: B images, A anchors (all levels), C classes, M objects of one image, K candidates, P
positives. Boxes are x1 y1 x2 y2 in input pixels. Source: the CLQ paper (sections III and IV);
where it is silent, the defaults of MMDetection's ATSS, which it builds on. Each section names its
equation.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clq_train.boxes import centerness, decode_deltas, paired_iou_giou, pairwise_iou
from clq_train.config import HeadConfig
from clq_train.dcn import deform_conv3x3
from clq_train.processes import mean_over_processes

QFL_BETA = 2.0
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
CLASS_PRIOR = 0.01
CANDIDATES_PER_LEVEL = 9  # ATSS's k
EMPTY_SLOT = -1e9  # below any log ranking


class Predictions(NamedTuple):
    """What the head says of every anchor, float32."""

    cls: Tensor  # (B, A, C) logits
    deltas: Tensor  # (B, A, 4), see boxes.decode_deltas
    quality: Tensor | None  # (B, A) logits of the predicted IoU or centerness; None without branch


class Objects(NamedTuple):
    """The labelled objects of one image."""

    boxes: Tensor  # (M, 4)
    labels: Tensor  # (M,) int64 in [0, C)


# ---------------------------------------------------------------- 1. anchors


def anchors_for(
    sizes: Sequence[tuple[int, int]], strides: Sequence[int], scale: float, device: torch.device
) -> list[Tensor]:
    """One square anchor a cell, side scale x stride, centred on (column x stride, row x stride).

    sizes    rows and columns of each level's map
    returns  a tensor (rows * columns, 4) for each level, row-major
    """
    levels = []
    for (rows, cols), stride in zip(sizes, strides, strict=True):
        y, x = torch.meshgrid(
            torch.arange(rows, device=device, dtype=torch.float32) * stride,
            torch.arange(cols, device=device, dtype=torch.float32) * stride,
            indexing="ij",
        )
        centre = torch.stack([x, y], -1).view(-1, 2)
        half = scale * stride / 2
        levels.append(torch.cat([centre - half, centre + half], -1))
    return levels


# ---------------------------------------------------------------- 2. head


class LevelNorm(nn.Module):
    """Batch normalisation with its own statistics for each level of a shared tower.

    The levels differ in their statistics; one running mean for all of them would be wrong for each.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels))

    def forward(self, feature: Tensor, level: int) -> Tensor:
        return self.levels[level](feature)


class SharedNorm(nn.Module):
    """Group normalisation (32 groups), the same for every level: the paper's choice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)

    def forward(self, feature: Tensor, level: int) -> Tensor:
        return self.norm(feature)


class Tower(nn.Module):
    """`tower_depth` times conv3x3 without bias, normalisation, ReLU; shared over the levels."""

    def __init__(self, config: HeadConfig, levels: int) -> None:
        super().__init__()
        c = config.channels
        self.convs = nn.ModuleList(
            nn.Conv2d(c, c, 3, padding=1, bias=False) for _ in range(config.tower_depth)
        )
        self.norms = nn.ModuleList(
            LevelNorm(c, levels) if config.norm == "batch" else SharedNorm(c) for _ in self.convs
        )

    def forward(self, feature: Tensor, level: int) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            feature = F.relu(norm(conv(feature), level), inplace=True)
        return feature


class StarOffsets(nn.Module):
    """Offsets that spread the nine taps over the regressed box: corners, edge middles, centre.

    Geometry instead of weights, as in VarifocalNet (arXiv:2008.13367, section 3.4).
    """

    def __init__(self, anchor_scale: float) -> None:
        super().__init__()
        self.anchor_scale = anchor_scale  # the anchor's side in cells

    def forward(self, deltas: Tensor) -> Tensor:
        """(B, 4, H, W) regression outputs -> (B, 18, H, W) in cells, dy before dx for each tap."""
        half = self.anchor_scale / 2
        anchor = deltas.new_tensor([-half, -half, half, half]).float()
        boxes = decode_deltas(deltas.float().permute(0, 2, 3, 1), anchor)  # from the cell's centre
        x1, y1, x2, y2 = boxes.unbind(-1)
        # Tap -1, 0, 1 of the kernel goes to the box's low edge, centre, high edge.
        columns, rows = (x1 + 1, (x1 + x2) / 2, x2 - 1), (y1 + 1, (y1 + y2) / 2, y2 - 1)
        return torch.stack([o for row in rows for column in columns for o in (row, column)], 1)


class Align(nn.Module):
    """The features moved under the regressed boxes (paper, figure 5).

    A DCN whose offsets come from the four regression outputs, which are detached: by a bias-free
    1x1 convolution (`learned`) or by the geometry of the box (`star`).
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        c, learned = config.channels, config.align_offsets == "learned"
        self.offset = (
            nn.Conv2d(4, 18, 1, bias=False) if learned else StarOffsets(config.anchor_scale)
        )
        self.weight = nn.Parameter(torch.empty(c, c, 3, 3))
        self.bias = nn.Parameter(torch.zeros(c))

    def forward(self, feature: Tensor, deltas: Tensor) -> Tensor:
        offset = self.offset(deltas.detach())
        return F.relu(deform_conv3x3(feature, offset, self.weight, self.bias))


class NoAlign(nn.Module):
    def forward(self, feature: Tensor, deltas: Tensor) -> Tensor:
        return feature


class ClqHead(nn.Module):
    """Classification, regression and localisation quality of every cell of every level."""

    def __init__(self, config: HeadConfig, classes: int, levels: int) -> None:
        super().__init__()
        c = config.channels
        self.cls_tower, self.reg_tower = Tower(config, levels), Tower(config, levels)
        self.cls = nn.Conv2d(c, classes, 3, padding=1)
        self.reg = nn.Conv2d(c, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(levels))
        self.align = Align(config) if config.align else NoAlign()
        has_quality = config.lqe or config.centerness
        self.quality = nn.Conv2d(c, 1, 3, padding=1) if has_quality else None
        self.quality_on_aligned = config.lqe_input == "aligned"
        for name, parameter in self.named_parameters():
            if parameter.dim() == 4:
                # Narrow towers (channels below 256) start too quiet at 0.01: keep the paper's
                # value at 256 channels and the same output variance elsewhere.
                nn.init.normal_(parameter, std=0.01 * math.sqrt(256 / c))
            elif name.endswith(".bias") and ".norms." not in name:
                nn.init.zeros_(parameter)
        nn.init.constant_(self.cls.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))

    def forward(self, levels: Sequence[Tensor]) -> Predictions:
        """[(B, channels, H_l, W_l)] -> Predictions, level by level, row-major."""
        cls, deltas, quality = [], [], []
        for index, feature in enumerate(levels):
            reg_feature = self.reg_tower(feature, index)
            delta = self.reg(reg_feature).float() * self.scales[index]
            cls_feature = self.cls_tower(self.align(feature, delta), index)
            cls.append(per_anchor(self.cls(cls_feature)))
            deltas.append(per_anchor(delta))
            if self.quality is not None:
                source = cls_feature if self.quality_on_aligned else reg_feature
                quality.append(per_anchor(self.quality(source)).squeeze(-1))
        return Predictions(
            torch.cat(cls, 1).float(),
            torch.cat(deltas, 1),
            torch.cat(quality, 1).float() if quality else None,
        )


def per_anchor(feature: Tensor) -> Tensor:
    """(B, channels, H, W) -> (B, H * W, channels)."""
    return feature.flatten(2).transpose(1, 2)


# ---------------------------------------------------------------- 3. assignment


def atss_assign(anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Index of the object that each anchor is a positive of, -1 for none.

    anchors  [(A_l, 4)] of each level
    boxes    (M, 4)
    returns  (A,) int64

    For each object the 9 anchors of each level nearest its centre are candidates; positive are
    those whose IoU with it is at least mean + standard deviation of the candidates' and whose
    centre lies inside it. An anchor that qualifies for several objects takes the one of largest
    IoU. Source: Zhang et al. 2020 (arXiv:1912.02424), algorithm 1; MMDetection's ATSSAssigner.
    """
    flat = torch.cat(list(anchors))
    if len(boxes) == 0:
        return flat.new_full((len(flat),), -1, dtype=torch.int64)
    anchor_centre = (flat[:, :2] + flat[:, 2:]) / 2  # (A, 2)
    box_centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    # 1. candidates: the k nearest of each level
    candidates, start = [], 0
    for level in anchors:
        stop = start + len(level)
        distance = (anchor_centre[start:stop, None] - box_centre[None]).pow(2).sum(-1)  # (A_l, M)
        k = min(CANDIDATES_PER_LEVEL, len(level))
        candidates.append(distance.topk(k, dim=0, largest=False).indices + start)
        start = stop
    candidate = torch.cat(candidates)  # (Q, M)
    # 2. the object's own threshold
    iou = pairwise_iou(flat, boxes)  # (A, M)
    candidate_iou = iou.gather(0, candidate)  # (Q, M)
    positive = candidate_iou >= candidate_iou.mean(0) + candidate_iou.std(0)
    # 3. centre inside, with MMDetection's margin of 0.01 px
    centre = anchor_centre[candidate]  # (Q, M, 2)
    inside = torch.cat([centre - boxes[:, :2], boxes[:, 2:] - centre], -1).amin(-1) > 0.01
    # 4. contested anchors go to the object of largest IoU
    claim = torch.full_like(iou, -1.0)
    claim.scatter_(0, candidate, torch.where(positive & inside, candidate_iou, -1.0))
    best, match = claim.max(1)
    return torch.where(best >= 0, match, -1)


class Assigned(NamedTuple):
    """The positives of a batch, and what its losses are divided by."""

    matches: Tensor  # (B, A) as atss_assign gives them
    positives: Tensor  # scalar, at least 1


def assign(anchors: Sequence[Tensor], objects: Sequence[Objects]) -> Assigned:
    """The assignment of a batch by itself: the divisor is its own number of positive anchors."""
    matches = torch.stack([atss_assign(anchors, o.boxes) for o in objects])
    return Assigned(matches, (matches >= 0).sum().clamp(min=1).float())


# ---------------------------------------------------------------- 4. scores


def log_ranking(cls: Tensor, quality: Tensor | None, alpha: float) -> Tensor:
    """Logarithm of the ranking score, equations 2 and 3: cls_score * quality ** alpha.

    cls      (..., C) logits, quality (...) logits or None (then the ranking is the class score)
    returns  (..., C) float32, at most 0

    In log space and float32 because the product of two half-precision sigmoids has no gradient
    left where training needs it.
    """
    value = F.logsigmoid(cls.float())
    if quality is not None:
        value = value + alpha * F.logsigmoid(quality.float()).unsqueeze(-1)
    return value


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0 without cancellation (Maechler 2012, equation 7)."""
    x = x.clamp(max=-1e-12)
    near_zero = x > -math.log(2)
    # Each branch sees a harmless argument where the other is chosen: an infinity there would reach
    # the gradient as infinity times zero.
    first = torch.where(near_zero, x, -1.0)
    second = torch.where(near_zero, -1.0, x)
    return torch.where(near_zero, (-first.expm1()).log(), (-second.exp()).log1p())


# ---------------------------------------------------------------- 5. losses


def quality_focal_loss(log_score: Tensor, target: Tensor) -> Tensor:
    """Sum of |target - score| ** 2 times the binary cross entropy of score and target, equation 4.

    log_score, target  same shape; score = exp(log_score) and target in [0, 1]
    Source: Li et al. 2020 (arXiv:2006.04388), equation 2, on the ranking score.
    """
    entropy = -(target * log_score + (1 - target) * log1mexp(log_score))
    return ((target - log_score.exp()).abs().pow(QFL_BETA) * entropy).sum()


def focal_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Sum of the focal loss (arXiv:1708.02002, eq. 5) of logits (..., C) against 0 and 1."""
    entropy = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    wrong = torch.where(positive > 0, 1 - logits.sigmoid(), logits.sigmoid())
    weight = torch.where(positive > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return (weight * wrong.pow(FOCAL_GAMMA) * entropy).sum()


def criterion(
    predictions: Predictions,
    anchors: Sequence[Tensor],
    objects: Sequence[Objects],
    config: HeadConfig,
    assigned: Assigned | None = None,
) -> dict[str, Tensor]:
    """The losses by name: `cls`, `reg`, `lqe` or `centerness`; and `positives`, their divisor.

    predictions  of B images, anchors [(A_l, 4)], objects of each of the B images
    assigned     of a batch that is part of a larger one; None: as `assign` gives it
    Training minimises their sum (equation 6); `reg` has its weight of 2 in it. What each switch
    changes:

    qfl and lqe    quality focal loss of the ranking score against IoU' ** alpha, or against IoU'
                   (quality_target: plain)
    qfl, no lqe    quality focal loss of the class score against IoU' (GFL's soft label; figure 1
                   (d))
    no qfl         focal loss of the class score against 1; with lqe the quality only ranks (figure
                   1 (c)), with centerness too (figure 1 (b))
    iou_target     IoU' is the overlap of the regressed box, or of the anchor (equation 1's letter),
                   with the object
    reg_weight     each positive's GIoU loss by its IoU' or centerness, divided by their sum
    """
    flat = torch.cat(list(anchors))
    matches, positives = assign(anchors, objects) if assigned is None else assigned
    image, anchor = (matches >= 0).nonzero(as_tuple=True)  # (P,), (P,)
    empty = flat.new_zeros((0, 4)), matches.new_zeros(0)
    target_boxes = [o.boxes[m[m >= 0]] for o, m in zip(objects, matches, strict=True)]
    target_labels = [o.labels[m[m >= 0]] for o, m in zip(objects, matches, strict=True)]
    boxes = torch.cat([empty[0], *target_boxes])  # (P, 4)
    labels = torch.cat([empty[1], *target_labels])  # (P,)

    matched = flat[anchor]
    regressed = decode_deltas(predictions.deltas[image, anchor], matched)
    iou, giou = paired_iou_giou(regressed, boxes)
    if config.iou_target == "anchor":
        iou, _ = paired_iou_giou(matched, boxes)
    iou = iou.detach()
    central = centerness(matched, boxes)
    quality_target = central if config.centerness else iou
    weight = {"none": None, "iou": iou, "centerness": central}[config.reg_weight]
    losses = {"reg": 2.0 * regression_loss(giou, weight, positives)}

    target = torch.zeros_like(predictions.cls)  # (B, A, C)
    if config.qfl:
        powered = config.lqe and config.quality_target == "powered"
        target[image, anchor, labels] = iou**config.alpha if powered else iou
        score = log_ranking(predictions.cls, predictions.quality, config.alpha)
        losses["cls"] = quality_focal_loss(score, target) / positives
    else:
        target[image, anchor, labels] = 1.0
        losses["cls"] = focal_loss(predictions.cls, target) / positives
    if predictions.quality is not None:
        entropy = F.binary_cross_entropy_with_logits(
            predictions.quality[image, anchor], quality_target, reduction="sum"
        )
        losses["centerness" if config.centerness else "lqe"] = entropy / positives
    losses["positives"] = positives
    return losses


def regression_loss(giou: Tensor, weight: Tensor | None, positives: Tensor) -> Tensor:
    """Equation 5: the mean of 1 - GIoU over the positives, or their mean by `weight`.

    giou, weight  (P,) of the positives, positives the scalar divisor where there is no weight
    """
    if weight is None:
        return (1 - giou).sum() / positives
    # At least 1, as in MMDetection's ATSS: a batch of few, poor positives takes a small step.
    total = mean_over_processes(weight.sum()).clamp(min=1)
    return (weight * (1 - giou)).sum() / total


# ---------------------------------------------------------------- 6. candidates


class Candidates(NamedTuple):
    """The K best (anchor, class) pairs of each image by ranking score, descending, before NMS."""

    boxes: Tensor  # (B, K, 4) not clipped
    scores: Tensor  # (B, K) ranking scores, 0 in a slot without a candidate
    labels: Tensor  # (B, K) int64
    cls_scores: Tensor  # (B, K)
    qualities: Tensor  # (B, K), 1 without the LQE branch


def select_candidates(
    predictions: Predictions, anchors: Sequence[Tensor], alpha: float, per_level: int, count: int
) -> Candidates:
    """The `count` best pairs of each image, of which at most `per_level` come from one level.

    What export traces: shapes depend on the input's size alone, and `count` is fixed.
    """
    parts, start = [], 0
    for level in anchors:
        stop = start + level.shape[0]  # not len(): the tracer would freeze it
        quality = predictions.quality
        parts.append(
            _level_candidates(
                predictions.cls[:, start:stop],
                predictions.deltas[:, start:stop],
                None if quality is None else quality[:, start:stop],
                level,
                alpha,
                per_level,
            )
        )
        start = stop
    merged = Candidates(*(torch.cat(column, 1) for column in zip(*parts, strict=True)))
    scores, best = merged.scores.topk(min(count, merged.scores.shape[1]), dim=1)
    return Candidates(
        merged.boxes.gather(1, best.unsqueeze(-1).expand(-1, -1, 4)),
        scores,
        merged.labels.gather(1, best),
        merged.cls_scores.gather(1, best),
        merged.qualities.gather(1, best),
    )


def _level_candidates(
    cls: Tensor, deltas: Tensor, quality: Tensor | None, anchors: Tensor, alpha: float, k: int
) -> Candidates:
    """The k best pairs of one level; empty slots where the level has fewer anchors.

    Two steps, because a pair among the k best belongs to an anchor among the k best by its best
    class: TopK over anchors is C times smaller than over pairs.
    """
    classes = cls.shape[-1]
    # 1. anchors by their best class; k more slots, for levels of fewer than k anchors, sort last
    ranking = log_ranking(cls.amax(-1, keepdim=True), quality, alpha).squeeze(-1)  # (B, A)
    best, chosen = F.pad(ranking, (0, k), value=EMPTY_SLOT).topk(k, dim=1)  # (B, k)
    # Told apart by value, so that nothing depends on the number of anchors, which is dynamic in
    # export.
    real = best > EMPTY_SLOT
    chosen = torch.where(real, chosen, 0)
    # 2. pairs of those anchors
    cls = cls.gather(1, chosen.unsqueeze(-1).expand(-1, -1, classes))  # (B, k, C)
    if quality is not None:
        quality = quality.gather(1, chosen)
    pair_scores = log_ranking(cls, quality, alpha).exp() * real.unsqueeze(-1)
    scores, pair = pair_scores.flatten(1).topk(k, dim=1)  # (B, k)
    row = pair // classes
    chosen = chosen.gather(1, row)
    boxes = decode_deltas(deltas.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 4)), anchors[chosen])
    qualities = torch.ones_like(scores) if quality is None else quality.sigmoid().gather(1, row)
    return Candidates(
        boxes, scores, pair % classes, cls.sigmoid().flatten(1).gather(1, pair), qualities
    )
