"""Options of the command line that say `LEFT=RIGHT`, and may be given several times."""

from collections.abc import Iterable

from clq_train.errors import ConfigError


def option_pairs(option: str, items: Iterable[str], form: str) -> dict[str, str]:
    """The items as a dict.

    option  the option's name, and `form` what it takes, e.g. "CATEGORY=CLASS": for the message

    Raises ConfigError for an item without the sign, or with nothing on one side of it, and for a
    left side that is given twice.
    """
    found = {}
    for item in items:
        left, equals, right = item.partition("=")
        if not (left and equals and right):
            raise ConfigError(f"{option} {item!r}: expected {form}")
        if left in found:
            raise ConfigError(f"{option} {item!r}: {left} is given twice, first as {found[left]!r}")
        found[left] = right
    return found
