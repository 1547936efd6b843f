"""The class rules in a real Chromium, on a page whose boxes are known."""

import shutil
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the extra clq-train[webui]")

from clq_train.errors import DataError  # noqa: E402
from clq_train.webui.browser import EXTRACTOR, STEADY, launch, take  # noqa: E402
from clq_train.webui.labels import CLASS_OF, CLASSES, label_shot  # noqa: E402

FIXTURES = Path(__file__).parents[1] / "data/webui"
BOXES = [
    ("button", (10, 10, 130, 46)),
    ("button", (150, 10, 250, 46)),
    ("text_input", (10, 60, 210, 90)),
    ("text_input", (220, 60, 400, 94)),  # the border is the wrapper's
    ("select", (420, 60, 540, 90)),
    ("checkbox", (10, 110, 28, 128)),
    ("radio", (40, 110, 58, 128)),
    ("switch", (80, 106, 124, 130)),  # drawn in place of a hidden check box
    ("slider", (150, 110, 310, 130)),
    ("progress", (330, 112, 480, 126)),
    ("badge", (500, 110, 560, 130)),
    ("icon", (400, 190, 424, 214)),
    ("icon", (580, 190, 600, 210)),  # a pseudo-element of an icon font
    ("chart", (440, 190, 560, 270)),
    ("table", (10, 290, 310, 350)),
    ("checkbox", (340, 372, 360, 392)),  # the input is hidden, as React Aria does
    ("slider", (400, 374, 560, 390)),
    ("button", (300, 520, 500, 560)),  # what the bar leaves
]
# What is text: the box is inside these bounds, and as wide as the text.
TEXTS = [
    ("link", (270, 18, 400, 40)),
    ("heading", (10, 150, 200, 182)),
    ("text", (10, 190, 310, 232)),
    ("link", (60, 190, 310, 232)),
    ("nav_item", (340, 290, 420, 320)),
    ("text", (10, 370, 310, 430)),
    ("link", (300, 450, 420, 480)),
]
CELLS = 4


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as player:
        try:
            launched = launch(player, shutil.which("chromium"), None)
        except DataError as error:
            pytest.skip(f"no browser: {error}")
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def shot(browser):
    page = browser.new_page(viewport={"width": 640, "height": 600})
    page.set_content((FIXTURES / "rules.html").read_text())
    page.evaluate(EXTRACTOR)
    yield take(page, page.context.new_cdp_session(page))
    page.context.close()


def near(found, wanted):
    return all(abs(a - b) <= 1 for a, b in zip(found, wanted, strict=True))


def within(found, bounds):
    x0, y0, x1, y1 = bounds
    return found[0] >= x0 - 1 and found[1] >= y0 - 1 and found[2] <= x1 + 1 and found[3] <= y1 + 1


@pytest.mark.parametrize(("fine", "rect"), BOXES)
def test_an_element_with_a_box_of_its_own_gets_exactly_that_box(shot, fine, rect):
    assert [f.rect for f in shot.findings if f.fine == fine and near(f.rect, rect)]


@pytest.mark.parametrize(("fine", "bounds"), TEXTS)
def test_a_text_gets_the_box_of_its_lines_not_of_its_block(shot, fine, bounds):
    assert [f.rect for f in shot.findings if f.fine == fine and within(f.rect, bounds)]


def test_nothing_else_is_found(shot):
    cells = [f for f in shot.findings if f.fine == "text" and within(f.rect, (10, 290, 310, 350))]
    assert len(cells) == CELLS
    assert len(shot.findings) == len(BOXES) + len(TEXTS) + CELLS, [
        f for f in shot.findings if not any(f.fine == fine and near(f.rect, r) for fine, r in BOXES)
    ]
    assert shot.stable


def test_annotations_are_in_pixels_of_the_picture_and_of_the_14_classes(shot):
    image, labels = label_shot(shot, 1.0)
    assert image.size == (640, 600)
    assert {label.name for label in labels} <= set(CLASSES)
    assert len(CLASSES) == 14
    assert set(CLASS_OF.values()) <= set(CLASSES)
    for label in labels:
        x0, y0, x1, y1 = label.rect
        assert 0 <= x0 < x1 <= 640
        assert 0 <= y0 < y1 <= 600


def test_pages_find_the_random_numbers_and_the_date_of_their_seed(browser):
    seen = []
    for seed in (5, 5, 6):
        context = browser.new_context()
        context.add_init_script(f"(() => {{ {STEADY}\nsteady({seed}, 1798761600000); }})()")
        page = context.new_page()
        page.goto("data:text/html,<p>page")
        seen.append(page.evaluate("[Math.random(), Math.random(), new Date().getUTCFullYear()]"))
        context.close()
    assert seen[0] == seen[1] != seen[2]
    assert seen[0][2] == 2027
