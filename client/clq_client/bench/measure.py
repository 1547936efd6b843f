"""One measurement: warm-up, window, and how well the generator itself kept up."""

import asyncio
import gc
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from clq_client.bench.arrivals import constant, poisson
from clq_client.bench.figures import Figures, Window, figures_of, percentile_of_all_ms
from clq_client.bench.loops import Load, LoopLag, Sample, closed_loop, open_loop
from clq_client.bench.percentiles import percentile
from clq_client.bench.slo import Goal


class Arrivals(StrEnum):
    """How the requests of an open loop come: as those of independent users, or like a clock."""

    POISSON = "poisson"
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how every measurement of a run is made; goal None = no latency goal."""

    warmup_s: float
    duration_s: float
    arrivals: Arrivals
    seed: int
    goal: Goal | None


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement.

    rate        requests per second asked for in an open loop, None in a closed one
    clients     users of a closed loop, None in an open one
    holds_goal  whether the plan's goal was held; None where it has none
    lag_p99_ms  how late this program's own event loop ran what was due
    cpu_share   of one core that this program used
    """

    rate: float | None
    clients: int | None
    window: Window
    samples: list[Sample]
    figures: Figures
    holds_goal: bool | None
    lag_p99_ms: float
    cpu_share: float

    def to_dict(self) -> dict[str, object]:
        """The measurement as JSON takes it, without its samples."""
        return {
            "rate": self.rate,
            "clients": self.clients,
            **self.figures.to_dict(),
            "holds_goal": self.holds_goal,
            "generator": {"lag_p99_ms": self.lag_p99_ms, "cpu_share": self.cpu_share},
        }


async def measure_rate(load: Load, plan: Plan, rate: float) -> Measured:
    """An open loop of `rate` requests per second, > 0."""
    total_s = plan.warmup_s + plan.duration_s
    if plan.arrivals is Arrivals.POISSON:
        arrivals = poisson(rate, total_s, plan.seed)
    else:
        arrivals = constant(rate, total_s)
    watch = _Watch()
    async with watch:
        samples = await open_loop(load, arrivals)
    return _measured(samples, plan, watch, rate=rate, clients=None)


async def measure_clients(load: Load, plan: Plan) -> Measured:
    """A closed loop of `load.connections` users."""
    watch = _Watch()
    async with watch:
        samples = await closed_loop(load, plan.warmup_s + plan.duration_s)
    return _measured(samples, plan, watch, rate=None, clients=load.connections)


class _Watch:
    """Around a run: event loop lag and processor time; no pauses of the garbage collector."""

    def __init__(self) -> None:
        self.lag_p99_ms = 0.0
        self.cpu_share = 0.0
        self._lag = LoopLag()

    async def __aenter__(self) -> None:
        gc.collect()
        gc.disable()  # a collection among many samples would be a pause in every latency
        self._task = asyncio.create_task(self._lag.watch())
        self._cpu_s, self._start_s = time.process_time(), time.monotonic()

    async def __aexit__(self, *_: object) -> None:
        gc.enable()
        took_s = max(time.monotonic() - self._start_s, 1e-9)
        self.cpu_share = (time.process_time() - self._cpu_s) / took_s
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if self._lag.lags_s:
            self.lag_p99_ms = 1e3 * percentile(sorted(self._lag.lags_s), 99)


def _measured(
    samples: list[Sample], plan: Plan, watch: _Watch, rate: float | None, clients: int | None
) -> Measured:
    window = Window(plan.warmup_s, plan.warmup_s + plan.duration_s)
    holds = None
    if plan.goal is not None:
        reached_ms = percentile_of_all_ms(samples, window, plan.goal.percent)
        holds = reached_ms <= plan.goal.limit_ms
    limit_ms = None if plan.goal is None else plan.goal.limit_ms
    return Measured(
        rate=rate,
        clients=clients,
        window=window,
        samples=samples,
        figures=figures_of(samples, window, limit_ms),
        holds_goal=holds,
        lag_p99_ms=watch.lag_p99_ms,
        cpu_share=watch.cpu_share,
    )
