"""The runs of one bench command: one load, a ramp of rates, or the search for a goal."""

from collections.abc import Callable
from dataclasses import replace

from clq_client.bench.loops import Load
from clq_client.bench.measure import Measured, Plan, measure_clients, measure_rate
from clq_client.bench.slo import highest_rate

LOWEST_RATE = 0.1
PROBE_CLIENTS = 4
CONFIRMATION_LENGTH = 2.0  # times the duration of a probe
MOST_OF_CEILING = 0.5  # above this share of the generator's ceiling no rate is searched

Tell = Callable[[Measured], None]


async def run_ramp(load: Load, plan: Plan, rates: list[float], tell: Tell) -> list[Measured]:
    """One open loop for each rate, one after the other; `tell` gets each as it ends."""
    runs = []
    for rate in rates:
        runs.append(await measure_rate(load, plan, rate))
        tell(runs[-1])
    return runs


async def search_goal(
    load: Load, plan: Plan, ceiling: float, tell: Tell
) -> tuple[list[Measured], Measured | None]:
    """(all runs, the confirmed one with the highest rate that holds the goal, or None).

    Begins at 0.7 of what a closed loop of a few users reaches.
    """
    assert plan.goal is not None
    runs: list[Measured] = []
    confirmed: Measured | None = None

    def keep(run: Measured) -> Measured:
        runs.append(run)
        tell(run)
        return run

    async def holds(rate: float) -> bool:
        return keep(await measure_rate(load, plan, rate)).holds_goal is True

    async def confirms(rate: float) -> bool:
        nonlocal confirmed
        longer = plan.duration_s * CONFIRMATION_LENGTH
        again = replace(plan, duration_s=longer, seed=plan.seed + 1 + len(runs))
        confirmed = keep(await measure_rate(load, again, rate))
        return confirmed.holds_goal is True

    probe = keep(await measure_clients(replace(load, connections=PROBE_CLIENTS), plan))
    highest = max(MOST_OF_CEILING * ceiling, LOWEST_RATE)
    first = min(max(0.7 * probe.figures.throughput, LOWEST_RATE), highest)
    rate = await highest_rate(holds, confirms, first=first, lowest=LOWEST_RATE, highest=highest)
    return runs, confirmed if rate is not None else None
