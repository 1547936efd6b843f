"""Successive halving: many candidates shortly, the better half longer, and so on."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar


class Comparable(Protocol):
    """What scores must be: ordered."""

    def __lt__(self, other: object, /) -> bool: ...


C = TypeVar("C")
S = TypeVar("S", bound=Comparable)


async def halve(
    candidates: Sequence[C], score: Callable[[C, float], Awaitable[S | None]], first_s: float
) -> list[tuple[C, S]]:
    """The candidates of the last round with their scores, the best first.

    score    of a candidate, measured for about so many seconds; higher is better; None drops it
    first_s  seconds of the first round; each round takes twice as long for half as many, so that
             every round costs the same, until two are left or fewer

    Of equal scores the earlier candidate goes first.  Source: Jamieson and Talwalkar 2016,
    arXiv:1502.07943 (budget by rounds).
    """
    left, seconds = list(candidates), first_s
    while True:
        scored = [(candidate, await score(candidate, seconds)) for candidate in left]
        kept = [(candidate, reached) for candidate, reached in scored if reached is not None]
        kept.sort(key=lambda pair: pair[1], reverse=True)
        if len(left) <= 2:
            return kept
        left, seconds = [candidate for candidate, _ in kept[: (len(left) + 1) // 2]], 2 * seconds
