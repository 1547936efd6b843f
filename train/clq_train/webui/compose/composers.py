"""The composer of each family whose pages are not shipped whole: its pages and how they are written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clq_train.errors import DataError
from clq_train.webui.compose.own import empty_page, own_composer, own_pages
from clq_train.webui.sources import Family

EMPTY_PAGES = 200


@dataclass(frozen=True, slots=True)
class Composer:
    """pages: paths below the family's address; write: HTML of a path, None for other paths."""

    pages: list[str]
    write: Callable[[str], str | None]


def composer_of(family: Family, root: Path | None) -> Composer | None:
    """None for a family whose pages are files. root: its unpacked folder."""
    options = dict(family.options or {})
    match family.composer:
        case "":
            return None
        case "own":
            names = options["libraries"]
            return Composer(own_pages(names), own_composer(names))
        case "empty":
            return Composer([f"empty/{n}.html" for n in range(EMPTY_PAGES)], empty_page)
    raise DataError(f"families.toml: {family.name}: no composer {family.composer!r}")
