"""The learning rate of each step, and the optimiser that takes it."""

import math

import torch
from torch import nn

from clq_train.config import ScheduleConfig
from clq_train.muon import Muon

OUTPUTS = ("head.cls.", "head.reg.", "head.quality.")  # the layers that predict


def learning_rate(schedule: ScheduleConfig, step: int) -> float:
    """Learning rate of step 1 .. steps: linear warm-up from lr / 1000, then cosine or drops."""
    if step <= schedule.warmup_steps:
        return schedule.lr * (0.001 + 0.999 * step / schedule.warmup_steps)
    if schedule.decay == "step":
        drops = sum(step > share * schedule.steps for share in schedule.drops)
        return schedule.lr * 0.1**drops
    done = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return schedule.lr * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def build_optimizer(model: nn.Module, schedule: ScheduleConfig) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, AdamW or Muon; the two don't decay biases, norms and scales."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(
            trainable.values(), schedule.lr, momentum=0.9, weight_decay=schedule.weight_decay
        )
    apart = OUTPUTS if schedule.optimizer == "muon" else ()
    weights = [p for name, p in trainable.items() if p.dim() > 1 and not name.startswith(apart)]
    others = [p for name, p in trainable.items() if p.dim() <= 1 or name.startswith(apart)]
    if schedule.optimizer == "muon":
        return Muon(weights, others, schedule.lr, schedule.weight_decay)
    groups = [
        {"params": weights, "weight_decay": schedule.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, schedule.lr)
