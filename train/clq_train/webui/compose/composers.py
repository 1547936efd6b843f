"""The composer of each family whose pages are not shipped whole: its pages and how they are written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clq_train.errors import DataError
from clq_train.webui.compose import snippets
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
    if family.composer == "own":
        names = list((family.options or {})["libraries"])
        return Composer(own_pages(names), own_composer(names))
    if family.composer == "empty":
        return Composer([f"empty/{n}.html" for n in range(EMPTY_PAGES)], empty_page)
    if not family.composer:
        return None
    assert root is not None, f"{family.name}: a composer of snippets needs a package"
    match family.composer:
        case "bootstrap_examples":
            write = snippets.bootstrap_examples(root)
        case "jquery_ui":
            write = snippets.jquery_ui(root)
        case "govuk" | "nhsuk":
            write = snippets.government(root, family.composer)
        case "material_lite":
            write = snippets.material_lite(root)
        case "carbon":
            write = snippets.carbon(root)
        case _:
            raise DataError(f"families.toml: {family.name}: no composer {family.composer!r}")
    return Composer(snippets.numbered_pages(), write)
