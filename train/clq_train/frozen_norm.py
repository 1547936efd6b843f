"""Frozen batch norms that cost nothing: each becomes part of the convolution before it.

A frozen norm multiplies each channel by a constant and adds one. Done by itself that is two more
passes over every map, and under autocast it turns the map back to float32; done to the weights it
is neither. Tensors keep their names: the norm stays in its place and holds its four.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class NormedConv(nn.Conv2d):
    """A convolution that computes the frozen norm after it as well."""

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            groups=conv.groups,
            bias=False,
            device="meta",  # draws no random numbers
        )
        self.weight = conv.weight
        self.norm = (norm,)  # in a tuple, so that its tensors are not listed here too

    def forward(self, feature: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return super().forward(feature)
        norm = self.norm[0]
        factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * factor
        return self._conv_forward(feature, self.weight * factor.view(-1, 1, 1, 1), bias)


class AbsorbedNorm(FrozenBatchNorm2d):
    """A frozen norm whose work NormedConv does; in export one ordinary node, which is folded."""

    def forward(self, feature: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return F.batch_norm(
                feature, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return feature


def absorb_norms(network: nn.Module) -> None:
    """Puts a NormedConv in the place of every convolution that an AbsorbedNorm follows."""
    for parent in list(network.modules()):
        for (name, conv), (_, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, AbsorbedNorm):
                setattr(parent, name, NormedConv(conv, norm))
