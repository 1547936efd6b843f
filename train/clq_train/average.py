"""The moving average of the weights, which is what a run leaves."""

import torch
from torch import nn


class Average:
    """Exponential moving average of weights and batch statistics.

    The decay ramps up, (1 + step) / (10 + step) at most: a fixed one would hold the random start
    for thousands of steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - keep)
            else:
                self.weights[name].copy_(value)
