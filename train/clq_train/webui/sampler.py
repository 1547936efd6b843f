"""What is rendered: jobs drawn from a seed, the same for the same seed and sources."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from clq_train.webui.sources import Family

VIEWS_PER_JOB = 2  # a page is loaded once for both
# Width and height of the picture, weight, whether of a phone or tablet, scales to choose from.
Screen = tuple[int, int, float, bool, tuple[float, ...]]
SCREENS: tuple[Screen, ...] = (
    (1280, 800, 5, False, (1, 1, 1, 1.25, 0.9)),
    (1280, 720, 4, False, (1, 1, 1, 1.1)),
    (1024, 768, 3, False, (1, 1, 1.25)),
    (1200, 800, 2, False, (1, 1.5)),
    (1440, 900, 2, False, (1, 1, 1.25)),
    (960, 640, 2, False, (1, 0.8, 1.25)),
    (800, 800, 2, False, (1, 0.8, 1.25)),
    (640, 640, 2, False, (1, 0.75, 1.25)),
    (1280, 640, 1, False, (1, 1, 1.5)),
    (768, 1024, 2, False, (1, 1)),
    (820, 1180, 1, True, (1,)),
    (640, 1138, 1.3, True, (1.5, 1.75)),
    (780, 1280, 1.2, True, (2,)),
    (412, 860, 1, True, (1,)),
    (540, 960, 1, True, (1.25, 1.5)),
)
FONTS = (
    "Open Sans", "Lato", "Roboto", "Inter", "Nunito", "Poppins", "Montserrat", "Raleway",
    "Work Sans", "Merriweather", "Noto Serif", "PT Serif", "IBM Plex Sans", "Fira Sans", "Ubuntu",
    "Titillium Web", "DM Sans", "Karla", "Exo 2", "Rubik", "Roboto Slab", "Manrope",
    "Plus Jakarta Sans", "Lora", "Oswald", "Space Grotesk", "Comfortaa", "Playfair Display",
)  # fmt: skip
DARK_SHARE, FONT_SHARE, OPEN_SHARE = 0.25, 0.2, 0.3
# Val and test need fewer images than their pages could give; train gets all the others.
SPLIT_SHARE = {"train": 0.76, "val": 0.1, "test": 0.14}


@dataclass(frozen=True, slots=True)
class View:
    """A picture of a page.

    width, height  of the viewport, CSS px
    scroll         0 top to 1 bottom
    opens          which of the page's menus and dialogs is opened, 0 to 1; None: none
    format         "webp" or "jpg"
    """

    width: int
    height: int
    scroll: float
    opens: float | None
    format: str


@dataclass(frozen=True, slots=True)
class Job:
    """A page to load and what to take of it.

    page    path and query below the family's address
    scale   picture px for a CSS px
    dark    prefers-color-scheme, and the family's own dark theme
    font    in place of the page's own text fonts; None: as the page has it
    """

    name: str
    family: str
    page: str
    seed: int
    scale: float
    dark: bool
    font: str | None
    views: tuple[View, ...]


def plan(
    pages: Sequence[tuple[Family, list[str]]],
    images: int,
    seed: int,
    sizes: Sequence[tuple[int, int]] = (),
) -> list[Job]:
    """Jobs for about this many images, shuffled: any part of the list is a fair sample.

    sizes: width and height of all pictures, px; none: those of SCREENS.
    pages: what can be loaded of each family. A family whose share is larger than its pages shows
    the same page again, at another size and scroll position.
    """
    screens = [(*size, 1, False, (1,)) for size in sizes] or SCREENS
    by_split: dict[str, float] = {}
    for family, _ in pages:
        by_split[family.split] = by_split.get(family.split, 0) + family.weight
    present = sum(SPLIT_SHARE[split] for split in by_split)
    jobs = []
    for family, choices in pages:
        share = SPLIT_SHARE[family.split] / present * family.weight / by_split[family.split]
        loads = max(2, round(images * share / VIEWS_PER_JOB))
        order = list(choices)
        random.Random(f"{seed} {family.name}").shuffle(order)
        for number in range(loads):
            jobs.append(_job(family.name, order[number % len(order)], number, seed, screens))
    random.Random(seed).shuffle(jobs)
    return jobs


def _job(family: str, page: str, number: int, seed: int, screens: Sequence[Screen]) -> Job:
    name = f"{family}-{number:04d}"
    own_seed = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big")
    rng = random.Random(own_seed)
    screen = rng.choices(screens, [s[2] for s in screens])[0]
    scale, dark = rng.choice(screen[4]), rng.random() < DARK_SHARE
    font = rng.choice(FONTS) if rng.random() < FONT_SHARE else None
    views = []
    for view in range(VIEWS_PER_JOB):
        if view:
            same_kind = [s for s in screens if s[3] == screen[3]]
            screen = rng.choices(same_kind, [s[2] for s in same_kind])[0]
        scroll = rng.random() if view else rng.choice((0.0, 0.0, rng.random() * 0.5))
        last = view == VIEWS_PER_JOB - 1
        opens = rng.random() if last and rng.random() < OPEN_SHARE else None
        size = round(screen[0] / scale), round(screen[1] / scale)
        views.append(View(*size, round(scroll, 4), opens, rng.choice(("webp", "jpg"))))
    return Job(name, family, page, own_seed, scale, dark, font, tuple(views))
