"""Counts and times of inferences, in the form of the Open Inference Protocol's statistics.

A request's times are those of its slowest image, so that they add up to no more than the request
took; an execution is one call of the engine, whoever shared it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from clq_serve.oip_models import ProtocolModel
from clq_serve.responses import Timing

STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(slots=True)
class _Total:
    """How often something happened and how long it took altogether."""

    count: float = 0.0
    seconds: float = 0.0

    def add(self, seconds: float, share: float = 1.0) -> None:
        self.count += share
        self.seconds += seconds * share

    def tree(self) -> dict[str, int]:
        return {"count": round(self.count), "ns": round(1e9 * self.seconds)}


@dataclass(slots=True)
class _ModelStats:
    """Of one name and version since the service started."""

    last_inference_ms: int = 0
    images: int = 0
    executions: float = 0.0
    totals: dict[str, _Total] = field(default_factory=dict)
    batches: dict[int, dict[str, _Total]] = field(default_factory=dict)

    def total(self, name: str) -> _Total:
        return self.totals.setdefault(name, _Total())


class InferenceStats:
    """Counted by the event loop only, hence without a lock."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], _ModelStats] = {}

    def succeeded(self, model: ProtocolModel, images: Sequence[Timing], seconds: float) -> None:
        """A request was answered after `seconds`; `images` has the times of each of its images."""
        stats = self._of(model)
        stats.last_inference_ms = int(1e3 * time.time())
        stats.images += len(images)
        stats.total("success").add(seconds)
        slowest = max(images, key=lambda timing: timing.total)
        for stage, spent in _stages(slowest).items():
            stats.total(stage).add(spent)
        for timing in images:
            share = 1 / timing.batch_size  # of the execution, which all of its images add up to
            stats.executions += share
            batch = stats.batches.setdefault(timing.batch_size, {})
            for stage, spent in _stages(timing).items():
                batch.setdefault(stage, _Total()).add(spent, share)

    def failed(self, model: ProtocolModel, seconds: float) -> None:
        """A request to the model ended with an error after `seconds`."""
        self._of(model).total("fail").add(seconds)

    def tree(self, model: ProtocolModel) -> dict[str, Any]:
        """The statistics of one model, an element of `model_stats`."""
        stats = self._of(model)
        names = ("success", "fail", *STAGES, "cache_hit", "cache_miss")
        return {
            "name": model.name,
            "version": model.version,
            "last_inference": stats.last_inference_ms,
            "inference_count": stats.images,
            "execution_count": round(stats.executions),
            "inference_stats": {name: stats.total(name).tree() for name in names},
            "response_stats": {},
            "batch_stats": [
                {"batch_size": size}
                | {stage: batch[stage].tree() for stage in STAGES if stage != "queue"}
                for size, batch in sorted(stats.batches.items())
            ],
            "memory_usage": [],
        }

    def _of(self, model: ProtocolModel) -> _ModelStats:
        return self._models.setdefault((model.name, model.version), _ModelStats())


def _stages(timing: Timing) -> dict[str, float]:
    """Seconds in each of STAGES."""
    spent_ms = (timing.queue, timing.decode, timing.infer, timing.post)
    return {stage: ms / 1e3 for stage, ms in zip(STAGES, spent_ms, strict=True)}
