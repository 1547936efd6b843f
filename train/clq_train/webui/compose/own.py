"""Whole pages of our own in a component library: LIBRARY/NUMBER.html, and empty/NUMBER.html."""

import random
import re
from collections.abc import Callable

from clq_train.webui.compose.layouts import LAYOUTS, Page, body_of
from clq_train.webui.compose.parts import Library, libraries
from clq_train.webui.compose.words import words_for

PAGES_PER_LIBRARY = 1000


def own_pages(names: list[str]) -> list[str]:
    """Paths of the pages of a family that shows these libraries."""
    return [f"{name}/{number}.html" for number in range(PAGES_PER_LIBRARY) for name in names]


def own_composer(names: list[str]) -> Callable[[str], str | None]:
    """Writes the pages whose paths own_pages gives."""

    def compose(address: str) -> str | None:
        found = re.fullmatch(r"(\w+)/(\d+)\.html", address)
        if not found or found.group(1) not in names:
            return None
        return page_html(found.group(1), int(found.group(2)))

    return compose


def page_html(library_name: str, number: int) -> str:
    """A page, the same for the same arguments: library, language, layouts and theme are drawn."""
    library, rng = libraries()[library_name], random.Random(f"{library_name} {number}")
    words = words_for(rng)
    layout = rng.choices(list(LAYOUTS), list(LAYOUTS.values()))[0]
    page = Page(library, words, rng)
    return document(library, body_of(page, layout), rng, words.language, words.direction)


def document(library: Library, body: str, rng: random.Random, language: str, direction: str) -> str:
    theme = rng.choice(library.themes.split()) if library.themes else ""
    dark = rng.random() < 0.25 and (library.dark or library.dark_styles)
    styles = library.dark_styles if dark and library.dark_styles else library.styles
    key, _, value = library.dark.partition("=")
    attribute = f" {library.html}" + (f' {key}="{value}"' if dark and library.dark else "")
    if library.theme_attribute:
        attribute += f' {library.theme_attribute}="{theme}"'
    body = library.wrap.replace("$body", body) if library.wrap else body
    head = "".join(
        f'<link rel="stylesheet" href="/__lib/{s.replace("$theme", theme)}">' for s in styles
    )
    scheme = ":root{color-scheme:dark}" if dark else ""
    scripts = "".join(_script(s) for s in library.scripts)
    if library.mount:
        body, scripts = f'<div id="app">{body}</div>', f"{scripts}<script>{library.mount}</script>"
    return (
        f'<!doctype html><html lang="{language}" dir="{direction}"{attribute}><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{library.name}</title>'
        f"{head}<style>{scheme}{library.css}</style>"
        f"</head><body {library.body}>{body}{scripts}</body></html>"
    )


def _script(address: str) -> str:
    if address.startswith("module:"):
        return f'<script type="module" src="/__lib/{address.removeprefix("module:")}"></script>'
    return f'<script src="/__lib/{address}"></script>'


def empty_page(address: str) -> str | None:
    """A page on which nothing has a label: colours, lines, gradients, a few plain boxes."""
    found = re.fullmatch(r"empty/(\d+)\.html", address)
    if not found:
        return None
    rng = random.Random(address)
    ground = rng.choice((
        "#fff", "#111", f"hsl({rng.randrange(360)} {rng.randrange(80)}% {rng.randrange(10, 95)}%)",
        f"linear-gradient({rng.randrange(360)}deg,hsl({rng.randrange(360)} 60% 50%),hsl({rng.randrange(360)} 60% 70%))",
    ))  # fmt: skip
    boxes = "".join(
        f'<div style="margin:{rng.randint(10, 60)}px;height:{rng.randint(1, 140)}px;border-radius:{rng.choice((0, 8, 30))}px;'
        f'width:{rng.randint(10, 95)}%;background:hsl({rng.randrange(360)} 30% 50% / {rng.uniform(0.05, 0.4):.2f})"></div>'
        for _ in range(rng.choice((0, 0, 2, 5)))
    )
    return f'<!doctype html><html><head><meta charset="utf-8"></head><body style="margin:0;min-height:100vh;background:{ground}">{boxes}</body></html>'
