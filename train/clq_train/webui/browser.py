"""Chromium: loads a page of a job and takes pictures of it with the boxes of its elements."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, CDPSession, Error, Page, Playwright, TimeoutError

from clq_train.errors import DataError
from clq_train.webui.sampler import Job, View

HERE = Path(__file__).parent
START_MS = 1_798_761_600_000  # what pages take for now: 2027-01-01
LOAD_TIMEOUT_MS, ACTION_TIMEOUT_MS = 12_000, 8_000
SETTLE_MS, SCROLL_MS, OPEN_MS, AGAIN_MS = 220, 120, 450, 500
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--force-color-profile=srgb", "--font-render-hinting=none", "--disable-lcd-text",
    # A page that asks for something outside is told at once that there is no such host.
    "--host-resolver-rules="
    "MAP * ~NOTFOUND , EXCLUDE *.localhost , EXCLUDE localhost , EXCLUDE 127.0.0.1",
]  # fmt: skip


def _extractor() -> str:
    parts = ("dom", "visibility", "classify", "walk")
    code = "\n".join((HERE / "extract" / f"{part}.js").read_text() for part in parts)
    names = "prepare, extract, pseudoBoxes, layoutHash"
    return f"window.__clq = (() => {{\n{code}\nreturn {{ {names} }};\n}})(); 0"


def _page_function(name: str) -> str:
    """One function of page.js as an expression, which playwright calls with an argument."""
    return f"(argument) => {{\n{(HERE / 'page.js').read_text()}\nreturn {name}(argument);\n}}"


EXTRACTOR = _extractor()
STEADY = (HERE / "page.js").read_text()


@dataclass(frozen=True, slots=True)
class Finding:
    """fine: what the rules call it; rect: x0 y0 x1 y1, CSS px of the viewport."""

    fine: str
    rect: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Shot:
    """png: the viewport; foreign: rectangles of what is not looked into (frames)."""

    png: bytes
    findings: list[Finding]
    foreign: list[tuple[float, float, float, float]]
    stable: bool


def launch(playwright: Playwright, executable: str | None, fonts: Path | None) -> Browser:
    """Chromium; `fonts`: a fontconfig file, so that text looks alike on every machine.

    Raises DataError when it does not start.
    """
    env: dict[str, str | float | bool] = dict(os.environ)
    if fonts is not None:
        env["FONTCONFIG_FILE"] = str(fonts)
    try:
        return playwright.chromium.launch(executable_path=executable, args=ARGUMENTS, env=env)
    except Error as error:
        raise DataError(f"Chromium does not start: {error.message.splitlines()[0]}") from error


def shots(
    browser: Browser, job: Job, url: str, *, wait_ms: int, dark: str, fonts: str | None
) -> Iterator[tuple[View, Shot]]:
    """Pictures of the job's views, one after the other.

    url    of the page
    dark   theme that the page gets when the job is dark, besides prefers-color-scheme: see Family
    fonts  address of the style sheet of the job's font
    Raises playwright's Error for a page that can't be loaded.
    """
    first = job.views[0]
    context = browser.new_context(
        viewport={"width": first.width, "height": first.height},
        device_scale_factor=job.scale,
        color_scheme="dark" if job.dark else "light",
        locale="en-US",
        timezone_id="UTC",
        reduced_motion="reduce",
        service_workers="block",
        bypass_csp=True,
    )
    try:
        context.set_default_timeout(ACTION_TIMEOUT_MS)
        context.add_init_script(f"(() => {{ {STEADY}\nsteady({job.seed}, {START_MS}); }})()")
        page = context.new_page()
        page.on("dialog", lambda dialog: dialog.dismiss())
        _load(page, job, url, wait_ms, dark, fonts)
        session = context.new_cdp_session(page)
        for number, view in enumerate(job.views):
            if number:
                page.set_viewport_size({"width": view.width, "height": view.height})
                page.wait_for_timeout(SETTLE_MS)
            page.evaluate(_page_function("scrollToFraction"), view.scroll)
            page.wait_for_timeout(SCROLL_MS)
            if view.opens is not None and page.evaluate(
                _page_function("openSomething"), view.opens
            ):
                page.wait_for_timeout(OPEN_MS)
            yield view, take(page, session)
    finally:
        context.close()


def _load(page: Page, job: Job, url: str, wait_ms: int, dark: str, fonts: str | None) -> None:
    # What is there by then is looked at; an empty page is refused because it has no boxes.
    with contextlib.suppress(TimeoutError):
        page.goto(url, wait_until="load", timeout=LOAD_TIMEOUT_MS)
    page.wait_for_timeout(wait_ms)
    if job.dark and dark:
        page.evaluate(_page_function("darken"), dark)
    if job.font and fonts:
        page.add_style_tag(url=fonts)
        page.evaluate(_page_function("swapFont"), job.font)
    page.evaluate(_page_function("keepInPlace"))
    page.evaluate("() => document.fonts.ready.then(() => 0)")
    page.evaluate(EXTRACTOR)


def take(page: Page, session: CDPSession) -> Shot:
    """Findings and picture of what the page shows now, once more if it moved meanwhile.

    The extractor is loaded. The shot is not stable if the page moves the second time, too.
    """
    shot = _take(page, session)
    if not shot.stable:
        page.wait_for_timeout(AGAIN_MS)
        shot = _take(page, session)
    return shot


def _take(page: Page, session: CDPSession) -> Shot:
    page.evaluate("() => window.__clq.prepare()")
    before = page.evaluate("() => window.__clq.layoutHash()")
    answer = page.evaluate("() => window.__clq.extract()")
    boxes = answer["boxes"]
    if answer["pseudo"]:
        placed = list(_pseudo_boxes(answer["pseudo"], session))
        seen = page.evaluate("(boxes) => window.__clq.pseudoBoxes(boxes)", placed)
        boxes += [box for box in seen if box]
    png = page.screenshot(type="png")
    stable = page.evaluate("() => window.__clq.layoutHash()") == before
    findings = [Finding(box["fine"], tuple(box["rect"])) for box in boxes]
    return Shot(png, findings, [tuple(r) for r in answer["foreign"]], stable)


def _pseudo_boxes(wanted: list[dict[str, Any]], session: CDPSession) -> Iterator[dict[str, Any]]:
    """The boxes of marked pseudo-elements, which only the browser's own snapshot has."""
    snapshot = session.send("DOMSnapshot.captureSnapshot", {"computedStyles": []})
    strings, document = snapshot["strings"], snapshot["documents"][0]
    nodes, layout = document["nodes"], document["layout"]
    bounds: dict[int, list[float]] = {}
    for position, node in enumerate(layout["nodeIndex"]):
        bounds.setdefault(node, layout["bounds"][position])
    marks = {}
    for node, attributes in enumerate(nodes["attributes"]):
        for key, value in zip(attributes[::2], attributes[1::2], strict=True):
            if strings[key] == "data-clq":
                marks[node] = strings[value]
    kinds = zip(nodes["pseudoType"]["index"], nodes["pseudoType"]["value"], strict=True)
    found = {
        (marks.get(nodes["parentIndex"][n]), strings[kind]): bounds.get(n) for n, kind in kinds
    }
    left, top = document.get("scrollOffsetX", 0), document.get("scrollOffsetY", 0)
    for one in wanted:
        box = found.get((one["mark"], one["which"]))
        if box is None:
            continue
        x, y, width, height = box
        if one["fine"] == "icon" and not (3 <= width <= 60 and 3 <= height <= 60):
            continue
        rect = [x - left, y - top, x - left + width, y - top + height]
        yield {"mark": one["mark"], "fine": one["fine"], "rect": rect}


def version(browser: Browser) -> str:
    return f"Chromium {browser.version}"
