"""Muon: weight matrices move by their momentum made orthogonal; all else learns by AdamW.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), in the scale of Liu et al. 2025
(arXiv:2502.16982, equation 4), whose steps are as long as AdamW's: one learning rate serves both.
torch.optim.Muon takes nothing but matrices; nearly all weights here are convolutions.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
# Of the quintic that brings singular values to 0.7 .. 1.2 in five turns, by the first reference.
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315
TURNS = 5
RMS_OF_ADAMW = 0.2


class Muon(torch.optim.AdamW):
    """AdamW, but for `matrices`: parameters of two axes or more, whose first is the output."""

    def __init__(
        self, matrices: Iterable[Tensor], others: Iterable[Tensor], lr: float, weight_decay: float
    ) -> None:
        """weight_decay  of the matrices; the others have none."""
        super().__init__(
            [
                {"params": list(matrices), "weight_decay": weight_decay},
                {"params": list(others), "weight_decay": 0.0},
            ],
            lr,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        matrices = self.param_groups[0]
        gradients = {p: p.grad for p in matrices["params"] if p.grad is not None}
        for parameter in gradients:  # AdamW passes over what has no gradient
            parameter.grad = None
        loss = super().step(closure)
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
            by_shape[parameter.shape].append(parameter)
        for shape, members in by_shape.items():
            pushes = torch.stack([self._push(parameter).flatten(1) for parameter in members])
            scale = RMS_OF_ADAMW * max(pushes.shape[1:]) ** 0.5
            for parameter, move in zip(members, orthogonal(pushes), strict=True):
                parameter.mul_(1 - matrices["lr"] * matrices["weight_decay"])
                parameter.add_(move.view(shape), alpha=-matrices["lr"] * scale)
        return loss

    def _push(self, parameter: Tensor) -> Tensor:
        """Nesterov's momentum of the gradient."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # which AdamW looks for when it loads a state
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(state["momentum"], MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """(B, R, C) -> the same with all singular values brought near 1, by Newton-Schulz iteration.

    Singular values under a thousandth of a matrix's norm stay smaller.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    found = matrices if wide else matrices.mT
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(TURNS):
        gram = found @ found.mT
        found = LINEAR * found + (CUBIC * gram + QUINTIC * gram @ gram) @ found
    return found if wide else found.mT
