"""The backbones, from torchvision, and the feature pyramid."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import regnet_x_400mf, resnet50, resnet101, resnext101_64x4d
from torchvision.models.regnet import BlockParams, RegNet, ResBottleneckBlock
from torchvision.models.resnet import ResNet

from clq_train.config import BackboneConfig, NeckConfig
from clq_train.frozen_norm import AbsorbedNorm, absorb_norms


class Backbone(nn.Module):
    """Images to the maps C3, C4, C5 of strides 8, 16, 32.

    `stages` are the stem and four stages; `channels` are those of the last three.
    """

    def __init__(self, stages: Sequence[nn.Module], channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = channels
        self.frozen: list[nn.Module] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> [(B, channels_i, H / s, W / s)] for s of 8, 16, 32."""
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        return maps[2:]

    def freeze(self, stages: int) -> None:
        """The stem and the first `stages` - 1 stages keep their weights and statistics."""
        self.frozen = list(self.stages[:stages])
        for stage in self.frozen:
            stage.requires_grad_(False)

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for stage in self.frozen:
            stage.eval()
        return self


def build_backbone(config: BackboneConfig) -> Backbone:
    """The backbone named in the configuration, with random weights."""
    norm = AbsorbedNorm if config.frozen_norm else nn.BatchNorm2d
    match config.name:
        case "resnet50":
            backbone = _resnet(resnet50(norm_layer=norm))
        case "resnet101":
            backbone = _resnet(resnet101(norm_layer=norm))
        case "resnext101_64x4d":
            backbone = _resnet(resnext101_64x4d(norm_layer=norm))
        case "regnet_x_400mf":
            backbone = _regnet(regnet_x_400mf(norm_layer=norm), (64, 160, 400))
        case "regnet_nano":
            backbone = _regnet_for_cpus([1, 2, 4, 2])
        case "regnet_small":
            backbone = _regnet_for_cpus([1, 4, 12, 6])
            _start_as_identity(backbone)
    absorb_norms(backbone)
    backbone.freeze(config.frozen_stages)
    return backbone


def _resnet(net: ResNet) -> Backbone:
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    return Backbone([stem, net.layer1, net.layer2, net.layer3, net.layer4], (512, 1024, 2048))


def _regnet(net: RegNet, channels: tuple[int, int, int]) -> Backbone:
    return Backbone([net.stem, *net.trunk_output.children()], channels)


def _regnet_for_cpus(depths: list[int]) -> Backbone:
    """A RegNet-X (Radosavovic et al. 2020, arXiv:2003.13678) of few parameters, blocks by stage.

    Plain 1x1 and grouped 3x3 convolutions run close to the CPU's peak, unlike depthwise ones with
    squeeze and excitation; docs/log.md has the comparison.
    """
    widths = [32, 64, 128, 256]
    params = BlockParams(
        depths=depths,
        widths=widths,
        group_widths=[32] * 4,
        bottleneck_multipliers=[1.0] * 4,
        strides=[2] * 4,
    )
    return _regnet(RegNet(params, num_classes=1, stem_width=32), (widths[1], widths[2], widths[3]))


def _start_as_identity(backbone: Backbone) -> None:
    """Blocks that keep the shape return their input at the start (Goyal et al. 2017, section 5.1).

    So a deeper backbone with the weights of a shallower one (`init`) begins as that one.
    """
    for block in backbone.modules():
        if isinstance(block, ResBottleneckBlock) and block.proj is None:
            nn.init.zeros_(block.f.c[1].weight)  # of the last norm: input + 0, positive already


class FeaturePyramid(nn.Module):
    """Lin et al. 2017 (arXiv:1612.03144): P3..P5, then P6, P7 by stride 2 without ReLU."""

    def __init__(self, channels: Sequence[int], config: NeckConfig) -> None:
        super().__init__()
        out = config.channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, out, 1) for c in channels)
        self.output = nn.ModuleList(nn.Conv2d(out, out, 3, padding=1) for _ in channels)
        self.extra = nn.ModuleList(
            nn.Conv2d(out, out, 3, stride=2, padding=1) for _ in range(config.extra_levels)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[C3, C4, C5] -> [P3, ...]; the input's sides are multiples of the largest stride."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], scale_factor=2.0, mode="nearest")
        levels = [conv(x) for conv, x in zip(self.output, merged, strict=True)]
        for conv in self.extra:
            levels.append(conv(levels[-1]))
        return levels
