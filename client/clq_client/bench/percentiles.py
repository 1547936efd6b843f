"""Percentiles by nearest rank, of all values: exact sorting, no histogram, no interpolation."""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil

SHOWN = (50.0, 90.0, 99.0, 99.9)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed.

    ordered  ascending, at least one
    percent  in (0, 100]; its decimal notation is taken exactly: 99.9 % of 1000 are 999 values

    The value at rank ceil(percent / 100 * n), counted from 1, so always one that was measured.
    """
    if not ordered:
        raise ValueError("a percentile of no values")
    if not 0 < percent <= 100:
        raise ValueError(f"{percent!r} is no percentile; accepted: above 0, at most 100")
    rank = ceil(Fraction(str(percent)) * len(ordered) / 100)
    return ordered[rank - 1]


def percentile_name(percent: float) -> str:
    """E.g. "p99", "p99.9"."""
    return f"p{percent:g}"
