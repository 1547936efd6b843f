"""The learning rate of each step, and the optimiser that takes it."""

import math

import torch
from torch import nn

from clq_train.config import ScheduleConfig


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
    """SGD with momentum 0.9, or AdamW; no weight decay on biases, norms and scales under AdamW."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(
            trainable, schedule.lr, momentum=0.9, weight_decay=schedule.weight_decay
        )
    groups = [
        {
            "params": [p for p in trainable if p.dim() > 1],
            "weight_decay": schedule.weight_decay,
        },
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, schedule.lr)
