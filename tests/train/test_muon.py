"""Muon: moves are orthogonal, equal torch's own on matrices, and all else is AdamW."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clq_train.muon import Muon, orthogonal


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 99))
def test_singular_values_come_near_one_and_their_vectors_stay(rows, columns, seed):
    matrix = drawn(rows, columns, seed=seed)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.mT @ orthogonal(matrix[None])[0] @ right.mT
    strong = values > 0.02 * matrix.norm()
    assert ((turned.diagonal()[strong] > 0.6) & (turned.diagonal()[strong] < 1.25)).all()
    assert (turned - turned.diagonal().diag()).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(64, 576), (128, 32), (256, 256)])
def test_products_in_bfloat16_make_a_matrix_as_orthogonal(shape):
    matrix = drawn(1, *shape)
    exact = torch.linalg.svdvals(orthogonal(matrix)[0])
    with torch.autocast("cpu", torch.bfloat16):
        rough = orthogonal(matrix)[0]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(torch.linalg.svdvals(rough), exact, atol=0.05, rtol=0)


def test_each_matrix_of_a_stack_is_its_own():
    stack = torch.stack([drawn(6, 9), 1000 * drawn(6, 9, seed=1), torch.zeros(6, 9)])
    for matrix, found in zip(stack, orthogonal(stack), strict=True):
        torch.testing.assert_close(found, orthogonal(matrix[None])[0])
    assert (orthogonal(stack)[2] == 0).all()


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (1, 7)])
def test_a_matrix_moves_as_under_the_muon_of_torch(shape):
    ours, theirs = nn.Parameter(drawn(*shape)), nn.Parameter(drawn(*shape))
    mine = Muon([ours], [], lr=0.01, weight_decay=0.1)
    torchs = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(5):
        ours.grad, theirs.grad = drawn(*shape, seed=step), drawn(*shape, seed=step)
        mine.step()
        torchs.step()
    moved = (ours - drawn(*shape)).norm()
    assert (ours - theirs).norm() < 0.03 * moved  # torch iterates in bfloat16


def test_a_convolution_moves_as_the_matrix_of_its_taps_in_any_layout():
    kernel = drawn(8, 5, 3, 3)
    matrix = nn.Parameter(kernel.flatten(1).clone())
    last = nn.Parameter(kernel.clone().to(memory_format=torch.channels_last))
    for parameter in (matrix, last):
        parameter.grad = drawn(8, 5, 3, 3, seed=1).view(parameter.shape)
        Muon([parameter], [], lr=0.1, weight_decay=0.1).step()
    torch.testing.assert_close(last.flatten(1), matrix)


def test_the_others_learn_as_under_adamw():
    ours, theirs, matrix = (nn.Parameter(drawn(7)) for _ in range(3))
    mine = Muon([matrix.detach().view(1, 7).requires_grad_()], [ours], 0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW([theirs], 0.01, weight_decay=0.0)
    for step in range(4):
        ours.grad, theirs.grad = drawn(7, seed=step), drawn(7, seed=step)
        mine.step()
        adamw.step()
    assert torch.equal(ours, theirs)


def test_a_step_leaves_the_gradients_as_they_were():
    parameters = [nn.Parameter(drawn(4, 6)), nn.Parameter(drawn(4))]
    for parameter in parameters:
        parameter.grad = drawn(*parameter.shape, seed=1)
    Muon(parameters[:1], parameters[1:], 0.01, 0.0).step()
    for parameter in parameters:
        assert torch.equal(parameter.grad, drawn(*parameter.shape, seed=1))
