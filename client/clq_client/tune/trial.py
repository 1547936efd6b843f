"""How good a service is: the most good answers per second at which the goal is held."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from clq_client.bench.loops import Load
from clq_client.bench.measure import Arrivals, Measured, Plan, measure_clients
from clq_client.bench.slo import Goal

CLIENTS = (1, 2, 4, 8, 16, 32)
WARMUP_SHARE = 0.25
GAIN = 1.02  # twice as many clients that gain less than this gain nothing
IDLE_STEPS = 2  # in succession end the ladder: one may be bad luck


@dataclass(frozen=True, slots=True)
class Trial:
    """What a candidate reached.

    best   the closed loop with the most good answers per second that held the goal; where none
           did, that of one client
    holds  whether it did
    """

    best: Measured
    holds: bool

    @property
    def score(self) -> tuple[float, float]:
        """Higher is better: good answers per second, then the shorter median latency."""
        figures = self.best.figures
        rate = figures.goodput if self.holds else 0.0
        return rate, -figures.latency_ms.get("p50", float("inf"))

    def __lt__(self, other: object) -> bool:
        return isinstance(other, Trial) and self.score < other.score


async def try_service(load: Load, goal: Goal | None, seconds: float) -> Trial:
    """The trial of a running service: closed loops of 1, 2, 4, ... clients.

    goal     None: throughput alone
    seconds  measured for each number of clients

    Ends where the goal is missed, or where more clients gain nothing.
    """
    plan = Plan(WARMUP_SHARE * seconds, seconds, Arrivals.POISSON, 0, goal)
    runs: list[Measured] = []
    idle_steps = 0
    for clients in CLIENTS:
        run = await measure_clients(replace(load, connections=clients), plan)
        if _failed(run):
            break
        gained = not runs or run.figures.goodput > GAIN * _best(runs).figures.goodput
        idle_steps = 0 if gained else idle_steps + 1
        runs.append(run)
        if idle_steps == IDLE_STEPS:
            break
    return Trial(_best(runs), True) if runs else Trial(run, False)


def _failed(run: Measured) -> bool:
    return run.holds_goal is False or not run.figures.latency_ms


def _best(runs: Sequence[Measured]) -> Measured:
    return max(runs, key=lambda run: run.figures.goodput)
