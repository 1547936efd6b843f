"""A latency goal, and the highest rate that holds it."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

_GOAL = re.compile(r"p(\d+(?:\.\d+)?)=(\d+(?:\.\d+)?)(ms|s)")


@dataclass(frozen=True, slots=True)
class Goal:
    """`percent` % of all requests are answered well within limit_ms."""

    percent: float
    limit_ms: float

    @classmethod
    def parse(cls, text: str) -> "Goal":
        """The goal of a text like "p99=200ms" or "p99.9=1.5s".  Raises ValueError."""
        match = _GOAL.fullmatch(text.strip())
        if match is None or not 0 < float(match[1]) <= 100 or float(match[2]) == 0:
            raise ValueError(f"{text!r} is no latency goal; accepted: e.g. p99=200ms, p99.9=1.5s")
        return cls(float(match[1]), float(match[2]) * (1e3 if match[3] == "s" else 1.0))

    def __str__(self) -> str:
        return f"p{self.percent:g}={self.limit_ms:g}ms"


async def highest_rate(
    holds: Callable[[float], Awaitable[bool]],
    confirms: Callable[[float], Awaitable[bool]],
    *,
    first: float,
    lowest: float,
    highest: float,
    precision: float = 0.05,
) -> float | None:
    """The highest rate that holds and is confirmed; None where not even `lowest` does.

    holds            measures one rate
    confirms         measures it again, longer and with other arrivals: a lucky run is no result
    first            where the search begins
    lowest, highest  where it ends, 0 < lowest <= first <= highest
    precision        the next rate up that was tried and failed is at most that much higher

    Doubles or halves until one rate holds and one fails, then bisects (geometrically).  A rate that
    is not confirmed is lowered by `precision`, then by twice and by four times that, until one is.
    """
    bracket = await _bracket(holds, first, lowest, highest)
    if bracket is None:
        return None
    low, high = bracket
    while high > low * (1 + precision):
        middle = (low * high) ** 0.5
        if await holds(middle):
            low = middle
        else:
            high = middle
    step = precision
    while not await confirms(low):
        if low <= lowest:
            return None
        low = max(low / (1 + step), lowest)
        step = min(2 * step, 4 * precision)
    return low


async def _bracket(
    holds: Callable[[float], Awaitable[bool]], first: float, lowest: float, highest: float
) -> tuple[float, float] | None:
    """(a rate that holds, one that fails); both the same where `highest` holds; or None."""
    rate = first
    if await holds(rate):
        while rate < highest:
            higher = min(rate * 2, highest)
            if not await holds(higher):
                return rate, higher
            rate = higher
        return rate, rate
    while rate > lowest:
        lower = max(rate / 2, lowest)
        if await holds(lower):
            return lower, rate
        rate = lower
    return None
