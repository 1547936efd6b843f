"""The packages that pages come from and the families of pages: packages.toml and families.toml."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from clq_train.errors import DataError

DATA = Path(__file__).parent / "data"
SPLITS = ("train", "val", "test")
LARGEST_PAGE_BYTES = 2_500_000
SMALLEST_PAGE_BYTES = 600
# Parts of pages and vendored copies of other pages.
NOT_A_PAGE = re.compile(
    r"_includes|_layouts|partials|node_modules|/vendors?/|/plugins/|redirect|google[0-9a-f]{6,}"
)


@dataclass(frozen=True, slots=True)
class Package:
    """A package that is downloaded and unpacked, never installed.

    key        name@version of npm, name of Debian
    registry   "npm" or "debian"
    integrity  of the archive: "sha512-" and base64, or "sha256-" and base64
    keep       globs of what is unpacked; empty: everything
    vendor     its scripts and styles stand in for those that pages of other packages miss
    """

    key: str
    registry: str
    name: str
    version: str
    integrity: str
    licence: str
    attribution: str = ""
    keep: tuple[str, ...] = ()
    vendor: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """Pages that look alike, because they share their style sheets or their application.

    split     "train", "val" or "test"; a family is in one only
    kind      what the pages are, for the statistics: admin, landing, components, docs, ...
    weight    share of the images, relative to the other families
    licence   of the pages
    packages  keys of what has to be unpacked
    folder    of the pages, below the first package
    globs     of the pages
    exclude   pattern of pages that are left out
    composer  name of the composer in compose/, for pages of our own
    options   of the composer; files: content of scripts that the package lacks, by path
    app       name of the application in apps/, which runs while its pages are rendered
    wait_ms   from the page's load event to its first picture
    dark      "attribute=value" of <html> or ".class" of <body> that gives the dark theme
    vendor    versions that stand in for missing scripts and styles, before any other package
    """

    name: str
    split: str
    kind: str
    weight: float
    licence: str
    packages: tuple[str, ...] = ()
    folder: str = ""
    globs: tuple[str, ...] = ()
    exclude: str = ""
    composer: str = ""
    options: Mapping[str, Any] | None = None
    app: str = ""
    wait_ms: int = 250
    dark: str = ""
    vendor: tuple[str, ...] = ()


@cache
def all_packages() -> dict[str, Package]:
    tree = tomllib.loads((DATA / "packages.toml").read_text())
    return {
        key: Package(key=key, registry=registry, **_tuples(entry))
        for registry, entries in tree.items()
        for key, entry in entries.items()
    }


@cache
def all_families() -> dict[str, Family]:
    tree = tomllib.loads((DATA / "families.toml").read_text())
    families = {name: Family(name=name, **_tuples(entry)) for name, entry in tree.items()}
    for family in families.values():
        if family.split not in SPLITS:
            raise DataError(
                f"families.toml: {family.name}: split {family.split!r} is none of {SPLITS}"
            )
        for key in (*family.packages, *family.vendor):
            if key not in all_packages():
                raise DataError(
                    f"families.toml: {family.name}: no package {key!r} in packages.toml"
                )
    return families


def chosen_families(names: list[str] | None) -> list[Family]:
    """The families of these names, or all; DataError names the unknown one."""
    known = all_families()
    for name in names or []:
        if name not in known:
            raise DataError(f"no family {name!r}; the families are {', '.join(known)}")
    return [known[name] for name in names] if names else list(known.values())


def needed_packages(families: list[Family]) -> list[Package]:
    """What these families are rendered from: their own packages, those that stand in, fonts."""
    own = {key for family in families for key in (*family.packages, *family.vendor)}
    return [
        p
        for p in all_packages().values()
        if p.key in own or p.vendor or p.name.startswith("@fontsource/")
    ]


def static_pages(family: Family, root: Path) -> list[str]:
    """Paths below the family's folder of the pages that a package ships, sorted."""
    found = set()
    for glob in family.globs:
        for path in root.glob(glob):
            relative = path.relative_to(root).as_posix()
            if NOT_A_PAGE.search(relative) or (
                family.exclude and re.search(family.exclude, relative)
            ):
                continue
            if path.is_file() and SMALLEST_PAGE_BYTES <= path.stat().st_size <= LARGEST_PAGE_BYTES:
                found.add(relative)
    return sorted(found)


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
