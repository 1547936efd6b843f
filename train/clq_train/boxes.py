"""The box geometry of the project: overlap, and the decoding of boxes against anchors.

Boxes are x1 y1 x2 y2 in input pixels everywhere in this package.
Letters: A anchors, M boxes, P pairs.
"""

import math

import torch
from torch import Tensor

# DeltaXYWH coding as in MMDetection's ATSS configuration (means are zero).
DELTA_STDS = (0.1, 0.1, 0.2, 0.2)
# A regressed side is at most 1000/16 times the anchor's and at least 16/1000 of it, so that exp()
# stays finite.
MAX_LOG_RATIO = math.log(1000 / 16)


def area(boxes: Tensor) -> Tensor:
    """Areas in square pixels, 0 for an inverted box: (..., 4) -> (...)."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def pairwise_iou(anchors: Tensor, boxes: Tensor) -> Tensor:
    """IoU in [0, 1] of every anchor with every box: (A, 4), (M, 4) -> (A, M)."""
    top_left = torch.maximum(anchors[:, None, :2], boxes[None, :, :2])
    bottom_right = torch.minimum(anchors[:, None, 2:], boxes[None, :, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(-1)  # (A, M)
    union = area(anchors)[:, None] + area(boxes)[None] - overlap
    return overlap / union.clamp(min=1e-9)


def paired_iou_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU in [0, 1] and generalised IoU in [-1, 1] of pairs: (P, 4), (P, 4) -> (P,), (P,).

    Source: Rezatofighi et al. 2019 (arXiv:1902.09630), algorithm 1.
    """
    inner = torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])
    overlap = inner.clamp(min=0).prod(-1)
    union = (area(first) + area(second) - overlap).clamp(min=1e-9)
    outer = torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])
    hull = outer.clamp(min=0).prod(-1).clamp(min=1e-9)
    iou = overlap / union
    return iou, iou - (hull - union) / hull


def centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """How central the anchors' centres lie in their boxes, in [0, 1]: (P, 4), (P, 4) -> (P,).

    1 in the middle, 0 on an edge. Source: Tian et al. 2019 (arXiv:1904.01355), equation 3.
    """
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    low, high = centre - boxes[:, :2], boxes[:, 2:] - centre
    ratio = torch.minimum(low, high).clamp(min=0) / torch.maximum(low, high).clamp(min=1e-9)
    return ratio.prod(-1).sqrt()


def decode_deltas(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Boxes that the regression outputs describe, not clipped to the image.

    deltas   (..., 4) dx, dy in anchor sides and dw, dh as logarithms, each divided by its
             DELTA_STDS
    anchors  (..., 4) broadcastable to deltas
    returns  (..., 4)
    """
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., 2:] + anchors[..., :2]) / 2
    stds = deltas.new_tensor(DELTA_STDS)
    shift = deltas[..., :2] * stds[:2]
    log_ratio = (deltas[..., 2:] * stds[2:]).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    new_centre, half = centre + shift * size, size * log_ratio.exp() / 2
    return torch.cat([new_centre - half, new_centre + half], -1)
