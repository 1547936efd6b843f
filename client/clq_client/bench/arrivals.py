"""When requests arrive: seconds after the start, decided before the first one is sent."""

import random
from collections.abc import Iterator, Sequence


def poisson(rate: float, duration_s: float, seed: int) -> Iterator[float]:
    """Arrival times in [0, duration_s) of independent users: gaps are exponential, mean 1 / rate.

    rate  requests per second, > 0
    seed  the same seed gives the same times
    """
    generator = random.Random(seed)
    at_s = generator.expovariate(rate)
    while at_s < duration_s:
        yield at_s
        at_s += generator.expovariate(rate)


def constant(rate: float, duration_s: float) -> Iterator[float]:
    """Arrival times in [0, duration_s), 1 / rate apart; the first at 0."""
    index = 0
    while index / rate < duration_s:
        yield index / rate
        index += 1


def ramp_rates(first: float, last: float, steps: int) -> Sequence[float]:
    """`steps` rates from first to last, equally far apart; one step is `first` alone."""
    if steps == 1:
        return [first]
    return [first + (last - first) * index / (steps - 1) for index in range(steps)]
