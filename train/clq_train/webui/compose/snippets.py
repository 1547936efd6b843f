"""Pages around snippets that packages ship: examples of components, without pages of their own."""

import gzip
import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

PAGES = 300
NUMBERED = re.compile(r"page/(\d+)\.html")
BOOTSTRAP_THEMES = [
    "cerulean",
    "cosmo",
    "cyborg",
    "darkly",
    "flatly",
    "journal",
    "litera",
    "lumen",
    "lux",
    "materia",
    "minty",
    "morph",
    "pulse",
    "quartz",
    "sandstone",
    "simplex",
    "sketchy",
    "slate",
    "solar",
    "spacelab",
    "superhero",
    "united",
    "vapor",
    "yeti",
    "zephyr",
    "default",
    "default",
    "default",
]
DARK_JQUERY_THEMES = {
    "dark-hive",
    "ui-darkness",
    "vader",
    "dot-luv",
    "mint-choc",
    "trontastic",
    "le-frog",
}
TITLES = [
    "Tell us about your business",
    "What is your address?",
    "Check your answers",
    "Apply for a licence",
    "Your appointments",
    "How to contact us",
    "Your details",
    "Upload your documents",
    "Choose a date",
    "When did it start?",
    "Payment details",
]
COMPANIES = ("Acme", "Northwind", "Globex", "Initech", "Harbour & Co")
MENU = ("Home", "Products", "Pricing", "Docs", "Blog", "About", "Team", "Support")

Write = Callable[[str], str | None]


def numbered_pages() -> list[str]:
    return [f"page/{n}.html" for n in range(PAGES)]


def _numbered(compose: Callable[[random.Random], str]) -> Write:
    def write(address: str) -> str | None:
        found = NUMBERED.fullmatch(address)
        return compose(random.Random(int(found.group(1)))) if found else None

    return write


def _html(head: str, body: str, body_attributes: str = "") -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>page</title>{head}</head>'
        f"<body {body_attributes}>{body}</body></html>"
    )


def _styles(*addresses: str) -> str:
    return "".join(f'<link rel="stylesheet" href="/__lib/{a}">' for a in addresses)


def _script(address: str) -> str:
    return f'<script src="/__lib/{address}"></script>'


def _title(path: Path) -> str:
    return re.sub(r"[-_]+", " ", path.name.split(".")[0]).strip().title()


# ---- Bootstrap's documentation: examples between shortcodes of Hugo


def bootstrap_examples(root: Path) -> Write:
    by_page = _hugo_examples(root)

    def compose(rng: random.Random) -> str:
        theme = rng.choice(BOOTSTRAP_THEMES)
        css = f"bootswatch@5.3.8/dist/{theme}/bootstrap.min.css"
        if theme == "default":
            css = "bootstrap@5.2.3/dist/css/bootstrap.min.css"
        parts = []
        for page in rng.sample(sorted(by_page), rng.randint(5, 9)):
            examples = rng.sample(by_page[page], min(len(by_page[page]), rng.randint(1, 3)))
            inside = "".join(
                f'<div class="mb-3">{_without_shortcodes(e, rng)}</div>' for e in examples
            )
            title, level = page.replace("-", " ").title(), rng.choice((2, 3, 4))
            parts.append(f'<section class="mb-4"><h{level}>{title}</h{level}>{inside}</section>')
        columns = rng.choice((1, 1, 2, 3))
        cells = "".join(
            f'<div class="col-md-{12 // columns}">{"".join(parts[i::columns])}</div>'
            for i in range(columns)
        )
        links = "".join(
            f'<li class="nav-item px-2"><a class="nav-link" href="#">{m}</a></li>'
            for m in rng.sample(MENU, 4)
        )
        look = rng.choice(
            ("navbar-dark bg-primary", "navbar-dark bg-dark", "navbar-light bg-light")
        )
        nav = (
            f'<nav class="navbar navbar-expand {look} mb-3"><div class="container-fluid"><a class="navbar-brand" href="#">'
            f'{rng.choice(COMPANIES)}</a><ul class="navbar-nav me-auto">{links}</ul><form class="d-flex">'
            '<input class="form-control me-2" type="search" placeholder="Search">'
            '<button class="btn btn-outline-success" type="button">Search</button></form></div></nav>'
        )
        body = (
            nav
            + f'<div class="container{rng.choice(("", "-fluid"))}"><div class="row">{cells}</div></div>'
        )
        head = _styles(css, "bootstrap-icons@1.13.2/font/bootstrap-icons.min.css")
        return _html(head, body + _script("bootstrap@5.2.3/dist/js/bootstrap.bundle.min.js"))

    return _numbered(compose)


@cache
def _hugo_examples(root: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.md*")):
        text = (
            gzip.decompress(path.read_bytes()).decode()
            if path.suffix == ".gz"
            else path.read_text()
        )
        for match in re.finditer(
            r"\{\{<\s*example[^>]*>\}\}(.*?)\{\{<\s*/example\s*>\}\}", text, re.S
        ):
            example = match.group(1).strip()
            if len(example) >= 40 and not re.search(r"range \$|\.Site|<use ", example):
                found.setdefault(path.name.split(".")[0], []).append(example)
    return found


def _without_shortcodes(html: str, rng: random.Random) -> str:
    def photo(match: re.Match[str]) -> str:
        given = dict(re.findall(r'(\w+)="([^"]+)"', match.group(0)))
        width, height = given.get("width", "100%"), given.get("height", "180")
        sizes = ";".join(
            f"{k}:{v if '%' in v else v + 'px'}" for k, v in (("width", width), ("height", height))
        )
        return f'<img src="/__photo/{rng.randrange(9999)}.jpg" class="{given.get("class", "")}" style="{sizes};object-fit:cover">'

    html = re.sub(r"\{\{<\s*placeholder[^>]*>\}\}", photo, html)
    html = re.sub(r'\{\{<\s*docsref "([^"]*)"\s*>\}\}', "#", html)
    return re.sub(r"\{\{.*?\}\}", "", html, flags=re.S)


# ---- jQuery UI's documentation: one small page for each example


def jquery_ui(root: Path) -> Write:
    unusable = "effect|droppable|position|toggle|widget|addClass|show|hide|switchClass|animate|draggable|resizable|sortable|selectable|index"
    pages: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*/*.html")):
        if not re.search(unusable, path.relative_to(root).as_posix()):
            pages.setdefault(path.parent.name, []).append(path)
    themes = [
        "base",
        "black-tie",
        "blitzer",
        "cupertino",
        "dark-hive",
        "dot-luv",
        "eggplant",
        "excite-bike",
        "flick",
        "hot-sneaks",
        "humanity",
        "le-frog",
        "mint-choc",
        "overcast",
        "pepper-grinder",
        "redmond",
        "smoothness",
        "south-street",
        "start",
        "sunny",
        "swanky-purse",
        "trontastic",
        "ui-darkness",
        "ui-lightness",
        "vader",
    ]

    def compose(rng: random.Random) -> str:
        theme = rng.choice(themes)
        head = _styles(f"jquery-ui-themes@1.12.0/themes/{theme}/jquery-ui.css")
        if theme in DARK_JQUERY_THEMES and rng.random() < 0.7:
            head += "<style>body{background:#222;color:#ddd}</style>"
        body, scripts = "", ""
        for name in rng.sample(sorted(pages), rng.randint(4, 7)):
            text = rng.choice(pages[name]).read_text()
            inside = re.search(r"<body[^>]*>(.*)</body>", text, re.S)
            code = re.search(r'<script[^>]*bootstrap\.js"[^>]*>(.*?)</script>', text, re.S)
            head += "".join(re.findall(r"<style>.*?</style>", text, re.S))
            body += f'<div style="margin:14px 10px;clear:both;overflow:auto"><h3>{name.title()}</h3>{inside.group(1) if inside else ""}</div>'
            scripts += f"<script>try{{{code.group(1) if code else ''}}}catch(e){{}}</script>"
        needed = _script("jquery@3.7.1/dist/jquery.min.js") + _script(
            "jquery-ui-dist@1.13.3/jquery-ui.min.js"
        )
        return _html(head, body + needed + scripts, 'style="font-family:sans-serif;font-size:14px"')

    return _numbered(compose)


# ---- government: components with their HTML in fixtures.json


def government(root: Path, prefix: str) -> Write:
    fixtures = _fixtures(root)
    around = {
        "header", "footer", "skip-link", "breadcrumbs", "breadcrumb", "back-link", "phase-banner",
        "service-navigation", "cookie-banner", "heading",
    }  # fmt: skip
    package = f"{prefix}-frontend"
    base = f"{package}@{'6.6.0' if prefix == 'govuk' else '10.6.1'}/dist/{prefix}/{package}.min"

    def compose(rng: random.Random) -> str:
        def one(name: str, chance: float) -> str:
            return rng.choice(fixtures[name]) if name in fixtures and rng.random() < chance else ""

        top = (
            one("cookie-banner", 0.1)
            + one("header", 1)
            + one("service-navigation", 0.5)
            + one("phase-banner", 0.4)
        )
        top += one("breadcrumbs", 0.5) or one("breadcrumb", 0.5) or one("back-link", 1)
        inside = f'<h1 class="{prefix}-heading-xl">{rng.choice(TITLES)}</h1>'
        frequent = [
            "radios",
            "checkboxes",
            "select",
            "date-input",
            "tag",
            "input",
            "table",
            "button",
        ]
        names = rng.sample([n for n in fixtures if n not in around], rng.randint(4, 7))
        for name in names + rng.sample([n for n in frequent if n in fixtures], 3):
            if rng.random() < 0.35:
                inside += (
                    f'<h2 class="{prefix}-heading-m">{rng.choice(TITLES)}</h2><p class="{prefix}-body">Use this service to send '
                    f'information. You can <a class="{prefix}-link" href="#">read the guidance</a> before you start.</p>'
                )
            inside += rng.choice(fixtures[name])
        column = rng.choice(("two-thirds", "full", "two-thirds"))
        main = (
            f'<div class="{prefix}-width-container"><main class="{prefix}-main-wrapper"><div class="{prefix}-grid-row">'
            f'<div class="{prefix}-grid-column-{column}">{inside}</div></div></main></div>'
        )
        supported = (
            f'<script>document.body.className+=" js-enabled {prefix}-frontend-supported"</script>'
        )
        start = f'<script type="module">import * as m from "/__lib/{base}.js";try{{m.initAll&&m.initAll()}}catch(e){{}}</script>'
        body = supported + top + main + one("footer", 0.7) + start
        return _html(_styles(f"{base}.css"), body, f'class="{prefix}-template__body"')

    return _numbered(compose)


@cache
def _fixtures(root: Path) -> dict[str, list[str]]:
    found = {}
    for path in sorted(root.glob("components/*/fixtures.json")):
        entries = json.loads(path.read_bytes())["fixtures"]
        examples = [e["html"] for e in entries if not e.get("hidden") and len(e["html"]) > 30]
        if examples:
            found[path.parent.name] = examples
    return found


# ---- Material Design Lite, Carbon 10: a file for each component


def material_lite(root: Path) -> Write:
    unusable = re.compile("layout|loading|footer|grid")
    files = [p for p in sorted(root.glob("*/snippets/*.html")) if not unusable.search(p.as_posix())]
    icons = ["home", "inbox", "delete", "report", "forum", "flag", "local_offer"]

    def compose(rng: random.Random) -> str:
        cells = ""
        for path in rng.sample(files, rng.randint(7, 12)):
            snippet = re.sub(r"<script.*?</script>|\{%.*?%\}", "", path.read_text(), flags=re.S)
            snippet = re.sub(
                r'\bsrc="[^"]*\.(jpg|png)"', f'src="/__photo/{rng.randrange(999)}.jpg"', snippet
            )
            shade = rng.choice(("mdl-shadow--2dp", ""))
            cells += (
                f'<div class="mdl-cell mdl-cell--{rng.choice((4, 4, 6, 12))}-col {shade}" style="padding:14px;background:#fff">'
                f"<h5>{_title(path)}</h5>{snippet}</div>"
            )
        links = "".join(
            f'<a class="mdl-navigation__link" href="">{m}</a>' for m in rng.sample(MENU, 4)
        )
        drawer = "".join(
            f'<a class="mdl-navigation__link" href=""><i class="material-icons" style="margin-right:18px">{i}</i>{m}</a>'
            for i, m in zip(rng.sample(icons, 5), rng.sample(MENU, 5), strict=True)
        )
        body = (
            f'<div class="mdl-layout mdl-js-layout mdl-layout--fixed-header {rng.choice(("mdl-layout--fixed-drawer", ""))}">'
            f'<header class="mdl-layout__header"><div class="mdl-layout__header-row"><span class="mdl-layout-title">Console</span>'
            f'<div class="mdl-layout-spacer"></div><nav class="mdl-navigation mdl-layout--large-screen-only">{links}</nav></div></header>'
            f'<div class="mdl-layout__drawer"><span class="mdl-layout-title">Menu</span><nav class="mdl-navigation">{drawer}</nav></div>'
            f'<main class="mdl-layout__content"><div class="mdl-grid">{cells}</div></main></div>'
        )
        head = _styles(
            "material-icons@1.13.14/iconfont/material-icons.css",
            "material-design-lite@1.3.0/material.min.css",
        )
        return _html(
            head,
            body + _script("material-design-lite@1.3.0/material.min.js"),
            'style="background:#f5f5f5"',
        )

    return _numbered(compose)


def carbon(root: Path) -> Write:
    unusable = re.compile(
        "ui-shell|loading|skeleton|modal|grid|carousel|tooltip|copy-button|file-uploader"
    )
    by_component: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*/*.html")):
        if not unusable.search(path.as_posix()):
            by_component.setdefault(path.parent.name, []).append(path)

    def compose(rng: random.Random) -> str:
        cells = ""
        for name in rng.sample(sorted(by_component), min(len(by_component), rng.randint(6, 11))):
            path = rng.choice(by_component[name])
            cells += f'<section style="margin:0 0 28px;min-width:0"><h4>{_title(path)}</h4><div style="margin-top:8px">{path.read_text()}</div></section>'
        theme = rng.choice(("", "", "background:#f4f4f4"))
        columns = rng.choice((1, 2, 2, 3))
        grid = f'<main style="display:grid;grid-template-columns:repeat({columns},1fr);gap:24px;padding:24px">{cells}</main>'
        return _html(
            _styles("carbon-components@10.58.12/css/carbon-components.min.css"),
            f"<h1 style='padding:24px 24px 0'>{rng.choice(TITLES)}</h1>{grid}",
            f'style="{theme}"',
        )

    return _numbered(compose)
