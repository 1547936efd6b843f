"""Both paths of the deformable convolution against torchvision's operator, and its gradient."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from clq_train.dcn import deform_conv3x3, deform_conv3x3_by_rows


def inputs(height, width, spread, seed=0, batch=2, channels=6, out=5):
    torch.manual_seed(seed)
    return (
        torch.randn(batch, channels, height, width, requires_grad=True),
        (torch.randn(batch, 18, height, width) * spread).requires_grad_(),
        torch.randn(out, channels, 3, 3, requires_grad=True),
        torch.randn(out, requires_grad=True),
    )


# Not 0: exactly on a cell bilinear sampling has a kink, where each implementation picks a side.
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (9, 4), (16, 16)])
def test_the_cpu_path_and_its_gradients_equal_torchvisions_operator(height, width, spread):
    ours, theirs = inputs(height, width, spread), inputs(height, width, spread)
    out = deform_conv3x3_by_rows(*ours)
    expected = deform_conv2d(*theirs[:2], theirs[2], theirs[3], padding=1)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for name, a, b in zip(["feature", "offset", "weight", "bias"], ours, theirs, strict=True):
        torch.testing.assert_close(
            a.grad, b.grad, atol=2e-3, rtol=1e-3, msg=lambda m, n=name: n + m
        )


def test_zero_offsets_give_the_plain_convolution():
    feature, offset, weight, bias = inputs(8, 8, 0.0)
    torch.testing.assert_close(
        deform_conv3x3(feature, offset, weight, bias),
        F.conv2d(feature, weight, bias, padding=1),
        atol=1e-4,
        rtol=1e-4,
    )


def test_an_offset_moves_rows_first_then_columns():
    feature = torch.arange(25.0).view(1, 1, 5, 5)
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 1.0  # the centre tap alone
    offset = torch.zeros(1, 18, 5, 5)
    offset[:, 8] = 1.0  # tap 4, dy
    out = deform_conv3x3(feature, offset, weight, torch.zeros(1))
    torch.testing.assert_close(out[0, 0, :4], feature[0, 0, 1:])
    assert out[0, 0, 4].abs().max() == 0  # beyond the map reads zero


def test_sampling_stays_precise_under_autocast():
    feature, offset, weight, bias = inputs(4, 200, 2.0)
    exact = deform_conv3x3(feature, offset, weight, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = deform_conv3x3(feature, offset, weight, bias)
    # bfloat16 has 8 bits: the products lose them, the sampling positions must not.
    relative = (rough.float() - exact).norm() / exact.norm()
    assert relative < 0.01


@pytest.mark.gpu
def test_the_gpu_path_equals_the_cpu_path():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU on this machine")
    args = [x.detach() for x in inputs(9, 14, 2.0)]
    expected = deform_conv3x3(*args)
    out = deform_conv3x3(*(x.cuda() for x in args))
    torch.testing.assert_close(out.cpu(), expected, atol=1e-3, rtol=1e-3)
