"""The detector: pixels to predictions, and pixels to candidates."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clq_train.backbone import FeaturePyramid, build_backbone
from clq_train.clq import (
    Assigned,
    Candidates,
    ClqHead,
    Objects,
    Predictions,
    anchors_for,
    assign,
    criterion,
    select_candidates,
)
from clq_train.config import ModelConfig

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class ClqDetector(nn.Module):
    """Backbone, feature pyramid and CLQ head.

    Images are uint8 RGB (B, H, W, 3); H and W are multiples of the largest stride.
    """

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        self.neck = FeaturePyramid(self.backbone.channels, config.neck)
        self.head = ClqHead(config.head, classes, len(config.strides))
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Predictions, list[Tensor]]:
        """Predictions, and the anchors of each level that they belong to."""
        pixels = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        levels = self.neck(self.backbone(pixels))
        sizes = [(x.shape[2], x.shape[3]) for x in levels]
        anchors = anchors_for(
            sizes, self.config.strides, self.config.head.anchor_scale, images.device
        )
        return self.head(levels), anchors

    def assign(self, images: Tensor, objects: Sequence[Objects]) -> Assigned:
        """See clq.assign; needs the images' size alone."""
        sizes = [(images.shape[1] // s, images.shape[2] // s) for s in self.config.strides]
        scale = self.config.head.anchor_scale
        return assign(anchors_for(sizes, self.config.strides, scale, images.device), objects)

    def losses(
        self, images: Tensor, objects: Sequence[Objects], assigned: Assigned | None = None
    ) -> dict[str, Tensor]:
        """See clq.criterion."""
        predictions, anchors = self(images)
        return criterion(predictions, anchors, objects, self.config.head, assigned)

    def candidates(self, images: Tensor) -> Candidates:
        """The best (anchor, class) pairs of each image, before NMS: what export traces."""
        predictions, anchors = self(images)
        return select_candidates(
            predictions,
            anchors,
            self.config.head.alpha,
            self.config.candidates_per_level,
            self.config.candidates,
        )
