"""A whole build: fetch, serve, plan, render, write."""

import contextlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from clq_train.errors import DataError
from clq_train.webui import coco
from clq_train.webui.apps import apps, install, running
from clq_train.webui.build import Browsers, Render, run, write_whole
from clq_train.webui.compose.composers import Composer, composer_of
from clq_train.webui.fetch import fetch
from clq_train.webui.fonts import font_packages, write_fontconfig
from clq_train.webui.sampler import Job, plan
from clq_train.webui.server import PageServer
from clq_train.webui.sources import Family, chosen_families, needed_packages, static_pages

log = logging.getLogger(__name__)
# Pages that are there more often than they are needed: the first ones of a shuffled list suffice.
SETTINGS_FILE = "build.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the content of the data set.

    family, skip  names; () is all, none
    screens       width and height of all pictures, px; () is the sampler's own list
    """

    images: int
    seed: int
    family: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    screens: tuple[tuple[int, int], ...] = ()


def build_dataset(
    out: Path,
    settings: Settings,
    cache: Path,
    workers: int,
    executable: str | None,
    system_fonts: bool,
) -> dict[str, int]:
    """Builds or goes on building; images in each split.

    Raises DataError for an unknown family, a package that can't be fetched, a folder that was built
    with other settings, a Chromium that does not start.
    """
    families = [
        f for f in chosen_families(list(settings.family) or None) if f.name not in settings.skip
    ]
    chosen_families(list(settings.skip))  # an unknown name is refused
    _remember(out, settings)
    packages = needed_packages(families)
    fetch(packages + ([] if system_fonts else font_packages()), cache)
    fonts = None if system_fonts else write_fontconfig(cache)
    composers: dict[str, Composer] = {}
    with PageServer(families, cache, packages, {}) as server, contextlib.ExitStack() as started:
        ports = {}
        for name in sorted({f.app for f in families if f.app}):
            folder = install(apps()[name], cache)
            ports[name] = started.enter_context(running(apps()[name], folder))
        for family in families:
            composer = composer_of(family, server.root(family) if family.packages else None)
            if composer is not None:
                composers[family.name] = composer
                server.composers[family.name] = composer.write
        jobs = plan(
            [(f, _pages(f, composers.get(f.name), server)) for f in families],
            settings.images,
            settings.seed,
            settings.screens,
        )
        by_name = {f.name: f for f in families}
        run(
            [_render(j, by_name[j.family], server.port, ports) for j in jobs],
            out,
            workers,
            Browsers(executable, fonts),
        )
    return coco.write(out, families, settings.seed)


def _remember(out: Path, settings: Settings) -> None:
    """Refuses a folder that was built from something else."""
    path, wanted = out / SETTINGS_FILE, json.loads(json.dumps(asdict(settings)))
    if path.is_file():
        found = {"screens": []} | json.loads(path.read_bytes())  # older builds don't name them
        if found != wanted:
            raise DataError(f"{path}: built with {found}, asked for {wanted}; take another folder")
        return
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out}: not empty, and no {SETTINGS_FILE} says that a build made it")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(wanted).encode())


def _pages(family: Family, composer: Composer | None, server: PageServer) -> list[str]:
    if family.app:
        return apps()[family.app].all_pages()
    pages = composer.pages if composer else static_pages(family, server.root(family))
    if not pages:
        raise DataError(f"families.toml: {family.name}: no pages match {list(family.globs)}")
    return pages


def _render(job: Job, family: Family, port: int, app_ports: dict[str, int]) -> Render:
    base = f"http://{family.name}.localhost:{port}"
    font = f"{base}/__font/{job.font.replace(' ', '%20')}.css" if job.font else None
    at = f"http://127.0.0.1:{app_ports[family.app]}" if family.app else base
    return Render(job, f"{at}/{job.page}", family.wait_ms, family.dark, font)
