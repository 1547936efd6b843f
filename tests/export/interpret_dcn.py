"""Runs the kernel in Triton's interpreter and prints {case: [error, accepted error]} as JSON.

usage: interpret_dcn.py SHAPE...   of SHAPES; none takes all
A process of its own: a kernel that was decorated under TRITON_INTERPRET=1 can't be compiled.
"""

import itertools
import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from clq_export.dcn_kernel import deform_conv3x3, pack_weight

# name: N, C, M, rows, cols, stride, standard deviation of the offsets in cells
SHAPES = {
    "even map": (1, 16, 16, 8, 8, 1, 1.0),
    "odd sizes": (2, 20, 35, 7, 11, 1, 2.0),
    "stride 2": (1, 24, 18, 9, 7, 2, 2.0),
    "stride 3": (1, 8, 8, 10, 5, 3, 1.0),
    "one cell": (3, 16, 8, 1, 1, 1, 0.5),
    "one row": (1, 8, 16, 1, 13, 1, 1.0),
    "one column": (1, 8, 16, 9, 1, 1, 1.0),
    "far offsets": (1, 16, 16, 6, 6, 1, 30.0),
    "offsets beyond int32": (1, 16, 16, 6, 6, 1, 1e12),
    "wide map": (1, 4, 4, 2, 300, 1, 1.5),
    "two blocks of channels": (1, 40, 260, 3, 4, 1, 1.0),
    "whole-cell offsets": (1, 16, 16, 5, 5, 1, 0.0),
}


def case(shape: tuple, dtype: torch.dtype, form: str) -> tuple[float, float]:
    n, c, m, rows, cols, stride, reach = shape
    torch.manual_seed(0)
    x = torch.randn(n, c, rows, cols).to(dtype)
    w = (torch.randn(m, c, 3, 3) / (3 * c**0.5)).to(dtype)
    b = torch.randn(m).to(dtype)
    out = (n, 0, -(-rows // stride), -(-cols // stride))
    w_offset = None
    moves = reach * torch.randn(n, 18, *out[2:])
    offset = moves
    if form == "boxes":
        moves, w_offset = reach * torch.randn(n, 4, *out[2:]), torch.randn(18, 4)
        offset = F.conv2d(moves, w_offset[:, :, None, None])
    wide = (x.float(), offset, w.float(), b.float())
    expected = deform_conv2d(*wide, stride=stride, padding=1)
    if form != "plain":
        expected = expected.relu()
    found = deform_conv3x3(
        x,
        w if form == "plain" else pack_weight(w),
        moves,
        b,
        w_offset,
        relu=form != "plain",
        packed=form != "plain",
        stride=stride,
    )
    assert found.dtype == dtype
    error = (found.float() - expected).abs().max().item()
    if dtype == torch.float16:  # sampled values and the result are rounded to 11 bits
        return error, 1e-3 * (1 + expected.abs().max().item())
    # Offsets from boxes are summed in another order than by conv2d, which shows in the last bits of
    # the position.
    return error, 1e-5 + (2 * cols * 2**-23 if form == "boxes" else 0)


found = {}
for name, dtype, form in itertools.product(
    sys.argv[1:] or SHAPES, (torch.float32, torch.float16), ("plain", "fused", "boxes")
):
    found[f"{name}, {str(dtype)[6:]}, {form}"] = case(SHAPES[name], dtype, form)
json.dump(found, sys.stdout)
