"""The parts of component libraries, as templates: data/libraries.toml."""

import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from string import Template

from clq_train.webui.sources import DATA

# Icons of our own, drawn on 24 x 24.
ICONS = (
    '<circle cx="11" cy="11" r="7"/><path d="M21 21l-4-4"/>',
    '<path d="M3 12l9-9 9 9M5 10v10h14V10"/>',
    '<path d="M5 12h14M12 5v14"/>',
    '<path d="M20 6L9 17l-5-5"/>',
    '<path d="M3 6h18M8 6V4h8v2M6 6l1 14h10l1-14"/>',
    '<circle cx="12" cy="8" r="4"/><path d="M4 21c0-4 4-6 8-6s8 2 8 6"/>',
    '<path d="M12 3v12M7 10l5 5 5-5M4 21h16"/>',
    '<path d="M4 6h16M4 12h16M4 18h16"/>',
    '<rect x="3" y="5" width="18" height="16"/><path d="M3 10h18M8 3v4M16 3v4"/>',
    '<path d="M6 6l12 12M18 6L6 18"/>',
    '<path d="M4 20l4-1L20 7l-3-3L5 16z"/>',
    '<path d="M12 3l3 6 6 1-4 4 1 6-6-3-6 3 1-6-4-4 6-1z"/>',
    '<rect x="3" y="5" width="18" height="14"/><path d="M3 6l9 7 9-7"/>',
    '<path d="M6 17V11a6 6 0 0 1 12 0v6l2 2H4zM10 21h4"/>',
    '<path d="M12 20C5 15 3 12 3 8a4 4 0 0 1 9-2 4 4 0 0 1 9 2c0 4-2 7-9 12z"/>',
    '<path d="M7 4l12 8-12 8z"/>',
    '<path d="M7 4v16M17 4v16"/>',
    '<path d="M3 7h6l2 3h10v9H3z"/>',
    '<circle cx="5" cy="12" r="1"/><circle cx="12" cy="12" r="1"/><circle cx="19" cy="12" r="1"/>',
    '<path d="M9 5l7 7-7 7"/>',
    '<circle cx="12" cy="12" r="9"/><path d="M12 8v5M12 16v1"/>',
    '<rect x="5" y="11" width="14" height="10"/><path d="M8 11V7a4 4 0 0 1 8 0v4"/>',
    '<circle cx="12" cy="12" r="3"/><path d="M12 2v4M12 18v4M2 12h4M18 12h4M5 5l3 3M16 16l3 3M19 5l-3 3M8 16l-3 3"/>',
    '<path d="M4 10v4h4l5 5V5L8 10zM17 9a4 4 0 0 1 0 6"/>',
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Library:
    """A component library.

    styles, scripts  addresses; scripts that end in ".mjs" or start with "module:" are modules
    dark             attribute=value of <html> for the dark theme; dark_styles: in place of styles
    html, body       attributes of these elements
    wrap             around the body, as $body
    icons            templates of an icon with $icon, a name out of icon_names; empty: our own drawings
    parts            templates by kind; a list is a choice
    themes           names that $theme in styles may have, or the theme_attribute of <html>
    mount            script that runs after the page is there; the page is then inside <div id="app">
    """

    name: str
    styles: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    css: str = ""
    dark: str = ""
    dark_styles: list[str] = field(default_factory=list)
    html: str = ""
    body: str = ""
    wrap: str = ""
    icon: str = ""
    icon_names: str = ""
    themes: str = ""
    theme_attribute: str = ""
    mount: str = ""
    parts: Mapping[str, str | list[str]] = field(default_factory=dict)


@cache
def libraries() -> dict[str, Library]:
    tree = tomllib.loads((DATA / "libraries.toml").read_text())
    plain = tree["plain"]["parts"]
    found = {}
    for name, entry in tree.items():
        base = tree[entry.pop("like")] if "like" in entry else {}
        merged = {k: v for k, v in base.items() if k != "like"} | entry
        merged["parts"] = plain | dict(base.get("parts", {})) | entry.get("parts", {})
        found[name] = Library(name=name, **merged)
    return found


class Parts:
    """Writes parts of one library with texts that are drawn at random."""

    def __init__(self, library: Library, rng: random.Random) -> None:
        self.library, self.rng, self._count = library, rng, 0

    def new_id(self) -> str:
        self._count += 1
        return f"i{self._count}"

    def part(self, kind: str, **values: object) -> str:
        """HTML of a part. Values that a template names and that are not given are empty."""
        template = self.library.parts[kind]
        chosen = self.rng.choice(template) if isinstance(template, list) else template
        on = bool(values.pop("on", False))
        values |= {"checked": "checked" if on else "", "on": "true" if on else "false"}
        values.setdefault("id", self.new_id())
        names = Template(chosen).get_identifiers()
        return Template(chosen).substitute({name: values.get(name, "") for name in names})

    def icon(self, px: int | None = None) -> str:
        library, size = self.library, px or self.rng.choice((16, 18, 20, 24))
        if library.icon and px is None:
            name = self.rng.choice(library.icon_names.split())
            return Template(library.icon).substitute(icon=name)
        return (
            f'<svg width="{size}" height="{size}" viewBox="0 0 24 24" fill="none" stroke="currentColor" '
            f'stroke-width="2" style="vertical-align:-.2em;flex:none">{self.rng.choice(ICONS)}</svg>'
        )


def bars(rng: random.Random, width: int, height: int) -> str:
    """A bar chart with axis labels, as SVG."""
    count, colour = (
        rng.randint(5, 14),
        rng.choice(("#3b82f6", "#10b981", "#f59e0b", "#8b5cf6", "#ef4444")),
    )
    step = (width - 40) / count
    shapes = []
    for i in range(count):
        h = rng.uniform(0.15, 0.95) * (height - 40)
        shapes.append(
            f'<rect x="{34 + i * step:.0f}" y="{height - 24 - h:.0f}" width="{step * 0.65:.0f}" height="{h:.0f}" fill="{colour}"/>'
        )
        shapes.append(
            f'<text x="{34 + i * step:.0f}" y="{height - 8}" font-size="10" fill="currentColor">{i + 1}</text>'
        )
    return _chart(width, height, shapes)


def curve(rng: random.Random, width: int, height: int) -> str:
    """A line chart with one to three lines, as SVG."""
    shapes = []
    for colour in rng.sample(
        ("#3b82f6", "#10b981", "#f59e0b", "#8b5cf6", "#ef4444"), rng.randint(1, 3)
    ):
        y, points = rng.uniform(0.3, 0.7), []
        for i in range(25):
            y = min(0.95, max(0.05, y + rng.uniform(-0.12, 0.12)))
            points.append(f"{30 + i * (width - 40) / 24:.0f},{y * (height - 30):.0f}")
        shapes.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
    return _chart(width, height, shapes)


def _chart(width: int, height: int, shapes: list[str]) -> str:
    grid = [
        f'<path d="M30 {y * (height - 24) / 5 + 4:.0f}H{width - 6}" stroke="currentColor" opacity=".15"/>'
        f'<text x="2" y="{y * (height - 24) / 5 + 8:.0f}" font-size="10" fill="currentColor">{100 - 20 * y}</text>'
        for y in range(6)
    ]
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" style="max-width:100%">'
        + "".join(grid + shapes) + "</svg>"
    )  # fmt: skip
