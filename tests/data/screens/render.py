"""Renders the pages of this folder to PNG, as a browser shows them at 1280 x 800.

    python tests/data/screens/render.py                  all pages
    python tests/data/screens/render.py dashboard docs   only these

X.html becomes X.png beside it, compressed without loss.  Needs playwright, Pillow and a Chromium
(--chromium PATH).  The pages name their fonts with fallbacks, so another machine's fonts give other
pixels: render again only when a page has changed, and look at the result.
"""

import argparse
import io
import os
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parent
VIEWPORT = {"width": 1280, "height": 800}
CHROMIUM_ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(path.stem for path in FOLDER.glob("*.html"))
    parser.add_argument("names", nargs="*", help=f"pages, of: {', '.join(names)}")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="default: %(default)s")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(names)):
        parser.error(f"no such page: {', '.join(unknown)}; accepted: {', '.join(names)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=CHROMIUM_ARGS)
        page = browser.new_page(viewport=VIEWPORT, device_scale_factor=1)
        for name in options.names or names:
            target = FOLDER / f"{name}.png"
            write_png(screenshot(page, FOLDER / f"{name}.html"), target)
            sys.stdout.write(f"{target.name} {target.stat().st_size} bytes\n")
        browser.close()
    return 0


def screenshot(page: Page, html: Path) -> Image.Image:
    """The visible part of a page, RGB, once its fonts and images are there."""
    page.goto(html.resolve().as_uri(), wait_until="load")
    page.evaluate("document.fonts.ready.then(() => true)")
    return Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")


def write_png(image: Image.Image, target: Path) -> None:
    """Written beside, then renamed, so that a reader never sees half a file."""
    beside = target.with_suffix(".png.tmp")
    image.save(beside, format="PNG", optimize=True)
    os.replace(beside, target)


if __name__ == "__main__":
    sys.exit(main())
