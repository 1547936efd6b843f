"""Deformable convolution v1 (Dai et al. 2017, arXiv:1703.06211), 3x3, stride 1, one offset group.

One function, `deform_conv3x3`, picks the fastest path for the device:

CUDA, tracing for export   torchvision's operator (it exports as one standard ONNX DeformConv node)
CPU                        one matmul and weighted sums of its rows, equal to 1e-5
                           (benchmarks/dcn.py: how much faster than torchvision's CPU kernel)
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d


def deform_conv3x3(feature: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The 3x3 convolution whose nine taps are moved by `offset`; points outside the map read zero.

    feature  (B, C, H, W)
    offset   (B, 18, H, W) in cells, for each tap in row-major order dy then dx
    weight   (O, C, 3, 3), bias (O,)
    returns  (B, O, H, W)
    """
    if feature.is_cuda or torch.compiler.is_exporting():
        return deform_conv2d(feature, offset, weight, bias, padding=1)
    return deform_conv3x3_by_rows(feature, offset, weight, bias)


def deform_conv3x3_by_rows(feature: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As deform_conv3x3. Interpolation is linear, so the convolution may come before it.

    1. Every cell times the weights of every tap: a table of B * H * W * 9 rows of O.
    2. Each output is a weighted sum of 36 rows: for each tap, of the four cells about its point.
    """
    batch, channels, height, width = feature.shape
    cells = feature.permute(0, 2, 3, 1).reshape(-1, channels)
    table = F.linear(cells, weight.permute(2, 3, 0, 1).reshape(-1, channels))  # (B H W, 9 O)
    rows, shares = interpolation(offset, height, width)
    # In float32: the gradient of a row is the sum of many, which bfloat16 would round each time.
    table = table.float().view(-1, weight.shape[0])
    out = F.embedding_bag(rows, table, per_sample_weights=shares, mode="sum") + bias
    return out.view(batch, height, width, -1).permute(0, 3, 1, 2)


def interpolation(offset: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The 36 rows of the table that each output is made of, and the share of each.

    offset   (B, 18, H, W)
    returns  (B H W, 36) int32, and float32 in [0, 1], which is 0 for a cell outside the map
    """
    # Positions stay in float32 under autocast: bfloat16 resolves only 1/2 cell beyond column 64.
    dy, dx = offset.float().unflatten(1, (9, 2)).permute(2, 0, 3, 4, 1).contiguous()  # (B, H, W, 9)
    tap = torch.arange(3) - 1
    y = dy + (torch.arange(height)[:, None, None] + tap.repeat_interleave(3))
    x = dx + (torch.arange(width)[:, None] + tap.repeat(3))
    image = torch.arange(len(offset), dtype=torch.int32)[:, None, None, None] * height
    columns = _two_cells(x, width)
    rows, shares = [], []
    for row, share_y in _two_cells(y, height):
        start = (image + row) * width
        for column, share_x in columns:
            rows.append((start + column) * 9 + torch.arange(9, dtype=torch.int32))
            shares.append(share_y * share_x)
    return torch.cat(rows, -1).view(-1, 36), torch.cat(shares, -1).view(-1, 36)


def _two_cells(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The cells before and after a position along one axis, each with its share.

    Outside the map the cell is one of its edge and the share 0.
    """
    before = position.detach().floor()
    after_share = position - before
    cell = before.clamp(-2, size).int()  # far outside as well as just outside
    return [
        (index.clamp(0, size - 1), share * ((index >= 0) & (index < size)))
        for index, share in ((cell, 1 - after_share), (cell + 1, after_share))
    ]
