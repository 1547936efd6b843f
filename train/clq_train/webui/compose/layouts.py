"""Layouts of pages of our own. Small components, which real pages rarely show, are frequent here."""

import random
from collections.abc import Callable

from clq_train.webui.compose.parts import Library, Parts, bars, curve
from clq_train.webui.compose.words import Words

ROW = "display:flex;align-items:center;gap:12px;flex-wrap:wrap"
LINE = "border-bottom:1px solid #8884"


class Page:
    """One page: blocks of a library's parts with texts of a language."""

    def __init__(self, library: Library, words: Words, rng: random.Random) -> None:
        self.parts, self.words, self.rng = Parts(library, rng), words, rng
        self.part = self.parts.part

    # ---- texts

    def pick(self, texts: list[str]) -> str:
        return self.rng.choice(texts)

    def some(self, texts: list[str], low: int, high: int) -> list[str]:
        return self.rng.sample(texts, min(len(texts), self.rng.randint(low, high)))

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def title(self) -> str:
        return self.pick(self.words.titles)

    def sentences(self, low: int, high: int) -> str:
        return " ".join(self.some(self.words.sentences, low, high))

    def money(self) -> str:
        return f"{self.pick(['$', '€', '£', '¥'])}{self.rng.randint(1, 9900)}.{self.rng.randint(0, 99):02d}"

    def date(self) -> str:
        return f"{self.rng.randint(2019, 2027)}-{self.rng.randint(1, 12):02d}-{self.rng.randint(1, 28):02d}"

    # ---- single components

    def button(self, text: str | None = None) -> str:
        icon = self.parts.icon() + " " if self.chance(0.25) else ""
        return self.part("button", text=text or self.pick(self.words.buttons), icon=icon)

    def icon_button(self) -> str:
        return self.part("icon_button", icon=self.parts.icon())

    def link(self, text: str | None = None) -> str:
        return self.part("link", text=text or self.pick(self.words.links))

    def badge(self) -> str:
        return self.part("badge", text=self.pick(self.words.status))

    def options(self) -> str:
        texts = self.some(self.words.options, 2, 6)
        return "".join(self.part("option", text=t, value=f"o{i}") for i, t in enumerate(texts))

    def input(self) -> str:
        kind = self.rng.choice(
            ("text", "text", "text", "email", "password", "tel", "search", "number", "date", "time")
        )
        typed = kind in ("text", "search", "password", "tel") and self.chance(0.4)
        value = self.pick(self.words.names + self.words.status) if typed else ""
        hint = self.pick(self.words.labels) + "…" if self.chance(0.6) else ""
        return self.part(
            "input", label=self.pick(self.words.labels), type=kind, hint=hint, value=value
        )

    def textarea(self) -> str:
        text = self.sentences(1, 2) if self.chance(0.4) else ""
        return self.part("textarea", label=self.pick(self.words.labels), text=text)

    def select(self) -> str:
        value = self.pick(self.words.options)
        return self.part(
            "select", label=self.pick(self.words.labels), options=self.options(), value=value
        )

    def bare_select(self) -> str:
        return self.part("bare_select", options=self.options(), value=self.pick(self.words.options))

    def checkbox(self, text: str | None = None) -> str:
        text = self.pick(self.words.options) if text is None else text
        return self.part("checkbox", text=text, on=self.chance(0.45))

    def switch(self, text: str | None = None) -> str:
        text = self.pick(self.words.options) if text is None else text
        return self.part("switch", text=text, on=self.chance(0.5))

    def radios(self, low: int = 2, high: int = 5) -> list[str]:
        texts, group = self.some(self.words.options, low, high), self.parts.new_id()
        chosen = self.rng.randrange(len(texts) + 1)
        return [
            self.part("radio", text=t, group=group, on=i == chosen) for i, t in enumerate(texts)
        ]

    def slider(self) -> str:
        return self.part(
            "slider", label=self.pick(self.words.labels), value=self.rng.randint(3, 97)
        )

    def bare_slider(self) -> str:
        return self.part("bare_slider", value=self.rng.randint(3, 97))

    def progress(self) -> str:
        return self.part("progress", value=self.rng.randint(5, 95))

    def photo(self, style: str) -> str:
        return f'<img src="/__photo/{self.rng.randrange(10**6)}.jpg" alt="" style="object-fit:cover;{style}">'

    def avatar(self) -> str:
        px = self.rng.choice((28, 36, 44, 52))
        if self.chance(0.5):
            return self.photo(f"width:{px}px;height:{px}px;border-radius:50%;flex:none")
        colour = self.pick(["#7c3aed", "#0e7490", "#b45309", "#be123c", "#15803d"])
        return (
            f'<span style="width:{px}px;height:{px}px;border-radius:50%;background:{colour};color:#fff;display:inline-flex;'
            f'align-items:center;justify-content:center;flex:none">{self.pick(self.words.names)[0]}</span>'
        )

    def heading(self, level: int) -> str:
        return self.part(f"h{min(level, 4)}", text=self.title())

    def stack(self, items: list[str], gap: int = 10) -> str:
        return (
            f'<div style="display:grid;gap:{gap}px;justify-items:start">'
            + "".join(f"<div>{i}</div>" for i in items)
            + "</div>"
        )

    def row(self, items: list[str], style: str = "") -> str:
        return f'<div style="{ROW};{style}">' + "".join(items) + "</div>"

    def columns(self, items: list[str], count: int, gap: int = 18) -> str:
        cells = "".join(f'<div style="min-width:0">{i}</div>' for i in items)
        narrow = f"repeat(auto-fill,minmax(min(100%,{self.rng.choice((200, 240, 280))}px),1fr))"
        tracks = narrow if count > 1 else "1fr"
        return f'<div style="display:grid;grid-template-columns:{tracks};gap:{gap}px;align-items:start">{cells}</div>'

    # ---- blocks

    def field(self) -> str:
        kinds: list[Callable[[], str]] = [
            self.input, self.input, self.input, self.select, self.select, self.textarea, self.slider,
            lambda: self.stack([self.checkbox() for _ in range(self.rng.randint(1, 4))]),
            lambda: self.stack(self.radios()), lambda: self.row(self.radios(2, 4)),
            lambda: self.stack([self.switch() for _ in range(self.rng.randint(1, 3))]),
        ]  # fmt: skip
        return self.rng.choice(kinds)()

    def form(self) -> str:
        fields = [self.field() for _ in range(self.rng.randint(4, 10))]
        buttons = self.row(
            [self.button() for _ in range(self.rng.randint(1, 3))]
            + ([self.link()] if self.chance(0.4) else [])
        )
        return (
            self.heading(2)
            + self.columns(fields, self.rng.choice((1, 1, 2, 3)))
            + f'<div style="margin-top:16px">{buttons}</div>'
        )

    def settings(self) -> str:
        rows = []
        for _ in range(self.rng.randint(4, 9)):
            control = self.rng.choice((
                lambda: self.switch(""), lambda: self.switch(""), lambda: self.switch(""), self.bare_select,
                lambda: self.checkbox(""), self.button, lambda: f'<div style="width:160px">{self.bare_slider()}</div>',
                self.badge, self.link, self.icon_button,
            ))()  # fmt: skip
            more = (
                f'<div style="opacity:.75;font-size:.9em">{self.sentences(1, 1)}</div>'
                if self.chance(0.6)
                else ""
            )
            icon = self.parts.icon() if self.chance(0.3) else ""
            text = f'<div style="flex:1;min-width:120px"><div>{self.pick(self.words.options + self.words.titles)}</div>{more}</div>'
            rows.append(
                f'<div style="{ROW};flex-wrap:nowrap;padding:10px 4px;{LINE}">{icon}{text}<div>{control}</div></div>'
            )
        return self.heading(2) + "".join(rows)

    def survey(self) -> str:
        blocks = []
        for _ in range(self.rng.randint(2, 5)):
            answers = self.rng.choice((
                lambda: self.stack(self.radios(3, 5)), lambda: self.row(self.radios(3, 5), "gap:22px"), self.radio_grid,
                lambda: self.stack([self.checkbox() for _ in range(self.rng.randint(3, 6))]), self.bare_slider,
                self.textarea, self.bare_select,
            ))()  # fmt: skip
            blocks.append(
                f'<div style="margin:18px 0">{self.part("h4", text=self.pick(self.words.sentences))}{answers}</div>'
            )
        return (
            self.heading(1)
            + self.progress()
            + "".join(blocks)
            + self.row([self.button(), self.button()])
        )

    def radio_grid(self) -> str:
        heads = self.some(self.words.options, 3, 5)
        rows = []
        for _ in range(self.rng.randint(3, 5)):
            group = self.parts.new_id()
            chosen = self.rng.randrange(len(heads))
            cells = [
                self.part("radio", text="", group=group, on=i == chosen) for i in range(len(heads))
            ]
            rows.append([self.pick(self.words.titles), *cells])
        return self.table(["", *heads], rows)

    def table(self, heads: list[str], rows: list[list[str]]) -> str:
        head = "".join(f"<th>{h}</th>" for h in heads)
        body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
        return f'<div style="overflow-x:auto">{self.part("table", head=head, rows=body)}</div>'

    def listing(self) -> str:
        filters = [self.part("search", hint=self.pick(self.words.labels))]
        filters += [self.bare_select() for _ in range(self.rng.randint(1, 3))]
        filters += [self.checkbox()] if self.chance(0.4) else []
        filters += [self.button() for _ in range(self.rng.randint(1, 2))]
        cells: dict[str, Callable[[], str]] = {
            "name": lambda: self.pick(self.words.names), "link": lambda: self.link(self.pick(self.words.names)),
            "date": self.date, "status": self.badge, "status2": self.badge, "amount": self.money,
            "icons": lambda: " ".join(self.parts.icon() for _ in range(self.rng.randint(1, 3))),
            "switch": lambda: self.switch(""), "action": self.button, "progress": self.progress,
            "person": lambda: self.row([self.avatar(), self.pick(self.words.names)], "flex-wrap:nowrap"),
            "select": self.bare_select, "number": lambda: str(self.rng.randint(1, 9999)),
        }  # fmt: skip
        keys = self.rng.sample(list(cells), self.rng.randint(3, 6))
        ticks = self.chance(0.6)
        heads = ([self.checkbox("")] if ticks else []) + [
            self.pick(self.words.labels) for _ in keys
        ]
        rows = [
            ([self.checkbox("")] if ticks else []) + [cells[key]() for key in keys]
            for _ in range(self.rng.randint(4, 10))
        ]
        return (
            self.heading(2)
            + self.row(filters, "margin:12px 0")
            + self.table(heads, rows)
            + self.pager()
        )

    def pager(self) -> str:
        pages = "".join(
            self.part("page_on" if i == 2 else "page", text=i)
            for i in range(1, self.rng.randint(4, 8))
        )
        return self.part("pager", items=pages) if self.chance(0.8) else ""

    def tabs(self) -> str:
        texts = self.some(self.words.menu, 3, 6)
        return self.part(
            "tabs",
            items="".join(self.part("tab" if i else "tab_on", text=t) for i, t in enumerate(texts)),
        )

    def card(self, body: str) -> str:
        return self.part("card", body=body)

    def shop(self) -> str:
        def product() -> str:
            mark = (
                f'<span style="position:absolute;top:8px;inset-inline-start:8px">{self.badge()}</span>'
                if self.chance(0.5)
                else ""
            )
            picture = f'<div style="position:relative">{self.photo(f"width:100%;height:{self.rng.choice((110, 150, 190))}px")}{mark}</div>'
            stars = (
                self.row([self.parts.icon(14) for _ in range(5)], "gap:2px")
                if self.chance(0.5)
                else ""
            )
            act = self.row(
                [self.button(), self.icon_button()] if self.chance(0.4) else [self.button()]
            )
            return self.card(
                f"{picture}<div>{self.link(self.title())}</div><div>{self.money()}</div>{stars}{act}"
            )

        side = (
            self.heading(4)
            + self.stack([self.checkbox() for _ in range(4)])
            + self.slider()
            + self.stack(self.radios(3, 4))
        )
        grid = self.columns([product() for _ in range(self.rng.randint(4, 9))], 3)
        top = self.row([self.heading(2), self.bare_select(), self.badge(), self.badge()])
        return (
            top
            + f'<div style="display:flex;gap:24px"><div style="width:200px;flex:none">{side}</div><div style="flex:1;min-width:0">{grid}</div></div>'
        )

    def dashboard(self) -> str:
        tiles = [
            self.card(
                f'{self.pick(self.words.titles)}<div style="font-size:28px">{self.rng.randint(10, 99999)}</div>{self.badge() if self.chance(0.6) else self.progress()}'
            )
            for _ in range(self.rng.randint(3, 4))
        ]
        draw = self.rng.choice((bars, curve))
        charts = [
            self.card(
                self.heading(3)
                + self.row([self.bare_select()] if self.chance(0.5) else [])
                + draw(self.rng, self.rng.randint(300, 560), self.rng.randint(150, 260))
            )
            for _ in range(self.rng.randint(1, 3))
        ]
        goals = "".join(
            f'<div style="margin:10px 0">{self.pick(self.words.titles)}{self.progress()}</div>'
            for _ in range(3)
        )
        rows = [[self.pick(self.words.names), self.money(), self.badge()] for _ in range(4)]
        return (
            self.columns(tiles, 4)
            + "<br>"
            + self.columns([*charts, self.card(goals)], 2)
            + "<br>"
            + self.table(self.some(self.words.labels, 3, 3), rows)
        )

    def article(self) -> str:
        parts = [
            self.heading(1),
            self.row([self.avatar(), self.pick(self.words.names), self.date(), self.badge()]),
        ]
        for _ in range(self.rng.randint(3, 9)):
            kind = self.rng.random()
            if kind < 0.45:
                parts.append(f"<p>{self.sentences(2, 5)} {self.link()} {self.sentences(1, 2)}</p>")
            elif kind < 0.6:
                parts.append(self.heading(self.rng.choice((2, 3))))
            elif kind < 0.7:
                parts.append(
                    "<ul>"
                    + "".join(f"<li>{t}</li>" for t in self.some(self.words.sentences, 2, 5))
                    + "</ul>"
                )
            elif kind < 0.8:
                width, height = self.pick(["60%", "100%", "320px"]), self.rng.randint(120, 280)
                parts.append(f"<p>{self.photo(f'width:{width};height:{height}px')}</p>")
            elif kind < 0.86:
                parts.append(f"<blockquote>{self.sentences(1, 2)}</blockquote>")
            elif kind < 0.93:
                parts.append("<pre>for row in table:\n    total += row.amount\nprint(total)</pre>")
            else:
                parts.append(self.part("alert", text=self.sentences(1, 1)))
        return (
            f'<div style="max-width:{self.rng.choice((640, 760, 900))}px">'
            + "".join(parts)
            + "</div>"
        )

    def gallery(self) -> str:
        many = self.rng.randint
        kinds: list[Callable[[], str]] = [
            lambda: self.row([self.switch() for _ in range(many(3, 6))], "gap:20px"),
            lambda: self.stack([self.switch() for _ in range(many(2, 4))]),
            lambda: self.row([self.badge() for _ in range(many(4, 9))]),
            lambda: self.row(self.radios(3, 6), "gap:20px"), lambda: self.stack(self.radios(3, 5)),
            lambda: self.row([self.checkbox() for _ in range(many(3, 6))], "gap:20px"),
            lambda: self.columns([self.slider() for _ in range(many(2, 4))], 2),
            lambda: self.columns([self.select() for _ in range(many(2, 4))], 3),
            lambda: self.row([self.bare_select() for _ in range(many(2, 4))]),
            lambda: self.stack([f'<div style="width:280px;max-width:90vw">{self.progress()}</div>' for _ in range(many(2, 4))]),
            lambda: self.row([self.button() for _ in range(many(3, 7))]),
            lambda: self.row([self.icon_button() for _ in range(many(3, 7))]),
            lambda: self.columns([self.input() for _ in range(many(2, 4))], 3),
            self.tabs, self.pager, lambda: self.part("alert", text=self.sentences(1, 1)), self.textarea,
        ]  # fmt: skip
        chosen = self.rng.sample(kinds, self.rng.randint(5, 10))
        return self.heading(1) + "".join(
            f'<section style="margin:20px 0">{self.heading(3)}{kind()}</section>' for kind in chosen
        )

    def inbox(self) -> str:
        rows = []
        for _ in range(self.rng.randint(6, 12)):
            left = [self.checkbox("")] if self.chance(0.6) else []
            left += [self.parts.icon()] if self.chance(0.5) else [self.avatar()]
            text = f'<div style="flex:1;min-width:0"><b>{self.pick(self.words.names)}</b><div style="white-space:nowrap;overflow:hidden;text-overflow:ellipsis">{self.sentences(1, 2)}</div></div>'
            right = [self.badge()] if self.chance(0.4) else []
            rows.append(
                f'<div style="{ROW};flex-wrap:nowrap;padding:8px;{LINE}">{"".join(left)}{text}{"".join(right)}<small>{self.date()}</small></div>'
            )
        tools = self.row(
            [
                self.checkbox(""),
                *(self.icon_button() for _ in range(self.rng.randint(3, 6))),
                self.bare_select(),
            ],
            "padding:8px",
        )
        return self.tabs() + tools + "".join(rows) + self.pager()

    def player(self) -> str:
        tools = [self.icon_button() for _ in range(self.rng.randint(4, 9))]
        tools += [
            f'<div style="width:{self.rng.choice((90, 140, 220))}px">{self.bare_slider()}</div>'
            for _ in range(self.rng.randint(1, 2))
        ]
        tools += [self.bare_select()] if self.chance(0.5) else []
        panel = self.heading(4) + "".join(self.slider() for _ in range(self.rng.randint(3, 6)))
        panel += self.stack([self.switch() for _ in range(self.rng.randint(1, 4))]) + self.row(
            self.radios(2, 3)
        )
        picture = self.photo(f"width:100%;height:{self.rng.randint(240, 460)}px")
        stage = f"{picture}{self.row(tools, 'padding:8px 0')}"
        return f'<div style="display:flex;gap:18px;flex-wrap:wrap"><div style="flex:3;min-width:300px">{stage}</div><div style="flex:1;min-width:220px">{panel}</div></div>'

    def login(self) -> str:
        inside = (
            self.heading(2)
            + self.input()
            + self.input()
            + self.row([self.checkbox(), self.link()])
            + self.button()
        )
        more = self.row([self.icon_button() for _ in range(3)]) if self.chance(0.4) else self.link()
        return f'<div style="max-width:{self.rng.choice((340, 400, 460))}px;margin:6vh auto">{self.card(inside + more)}</div>'

    def phone(self) -> str:
        """Screen of a telephone: bar, list, tabs at the bottom."""
        bar = f'<div style="{ROW};padding:10px 12px;{LINE};flex-wrap:nowrap">{self.parts.icon(22)}<b style="flex:1">{self.title()}</b>{self.parts.icon(22)}</div>'
        cells = []
        for _ in range(self.rng.randint(5, 10)):
            right = self.rng.choice((
                lambda: self.switch(""), lambda: self.switch(""), lambda: self.parts.icon(18), self.badge,
                lambda: self.checkbox(""), self.date, lambda: f'<div style="width:120px">{self.bare_slider()}</div>',
            ))()  # fmt: skip
            icon = self.rng.choice((lambda: self.parts.icon(22), self.avatar, lambda: ""))()
            cells.append(
                f'<div style="{ROW};flex-wrap:nowrap;padding:12px;{LINE}">{icon}<span style="flex:1">{self.pick(self.words.options + self.words.menu)}</span>{right}</div>'
            )
        tabs = "".join(
            f'<a href="#" style="flex:1;display:flex;flex-direction:column;align-items:center;padding:6px;text-decoration:none;font-size:12px">{self.parts.icon(22)}<span>{t}</span></a>'
            for t in self.some(self.words.menu, 3, 5)
        )
        search = self.part("search", hint=self.pick(self.words.labels)) if self.chance(0.5) else ""
        return f'{bar}<div style="padding:0 4px 70px">{search}{"".join(cells)}</div><nav style="position:fixed;bottom:0;left:0;right:0;display:flex;background:Canvas;border-top:1px solid #8886">{tabs}</nav>'

    def dialog(self) -> str:
        """A page under a dialog."""
        body = self.rng.choice((
            lambda: f"<p>{self.sentences(1, 2)}</p>", lambda: self.input() + self.select(),
            lambda: self.stack(self.radios(3, 4)), lambda: self.stack([self.switch() for _ in range(3)]),
        ))()  # fmt: skip
        buttons = self.row(
            [self.button(), self.button()], "justify-content:flex-end;margin-top:14px"
        )
        close = (
            f'<span style="position:absolute;top:12px;inset-inline-end:12px">{self.parts.icon(20)}</span>'
            if self.chance(0.6)
            else ""
        )
        width = self.rng.choice((320, 420, 560))
        box = f'<div role="dialog" style="position:relative;background:Canvas;color:CanvasText;padding:20px;border-radius:{self.rng.choice((0, 6, 14))}px;width:min(92vw,{width}px);box-shadow:0 10px 40px #0006">{close}{self.heading(3)}{body}{buttons}</div>'
        shade = f'<div style="position:fixed;inset:0;z-index:9999;background:#000{self.rng.choice("5689")};display:flex;align-items:center;justify-content:center">{box}</div>'
        return self.rng.choice((self.listing, self.article, self.dashboard))() + shade

    # ---- around a page

    def navigation(self) -> str:
        items = "".join(self.part("nav_item", text=t) for t in self.some(self.words.menu, 3, 7))
        search = self.part("search", hint=self.pick(self.words.labels)) if self.chance(0.35) else ""
        return self.part("nav", items=items, brand=self.pick(self.words.names), search=search)

    def sidebar(self) -> str:
        items = "".join(
            f'<div style="padding:7px 4px">{self.parts.icon() if self.chance(0.7) else ""} <a href="#" style="text-decoration:none">{t}</a>{" " + self.badge() if self.chance(0.15) else ""}</div>'
            for t in self.some(self.words.menu, 5, 11)
        )
        look = self.pick(["", "border-inline-end:1px solid #8884", "background:#8881"])
        return f'<div role="navigation" style="width:{self.rng.choice((180, 210, 240))}px;flex:none;padding:14px;{look}">{items}</div>'

    def footer(self) -> str:
        links = " · ".join(f'<a href="#">{t}</a>' for t in self.some(self.words.menu, 3, 5))
        return f'<footer style="padding:16px">{links} <small>© 2026</small></footer>'


LAYOUTS: dict[str, float] = {
    "form": 3, "settings": 4, "survey": 3, "listing": 3, "gallery": 5, "shop": 2, "dashboard": 2, "article": 2,
    "inbox": 1.5, "player": 2.5, "login": 0.7, "phone": 2, "dialog": 1.5,
}  # fmt: skip
ALONE = {"phone", "login"}  # without navigation around them


def body_of(page: Page, layout: str) -> str:
    """The body of a page: one or two layouts, mostly with navigation around them."""
    rng = page.rng
    blocks = [getattr(page, layout)()]
    if layout not in ALONE and layout != "dialog" and rng.random() < 0.5:
        blocks.append(
            getattr(page, rng.choice(("form", "settings", "gallery", "listing", "survey")))()
        )
    width = rng.choice(("", "max-width:1100px;margin:auto", "max-width:860px;margin:auto"))
    if layout == "phone":
        return str(blocks[0])
    main = f'<main style="padding:16px;{width}">' + "<br>".join(blocks) + "</main>"
    if layout == "login":
        return main
    top = page.navigation() if rng.random() < 0.8 else ""
    if rng.random() < 0.3:
        main = f'<div style="display:flex">{page.sidebar()}<div style="flex:1;min-width:0">{main}</div></div>'
    return top + main + (page.footer() if rng.random() < 0.4 else "")
