"""Renders jobs in worker processes into a folder; a killed build goes on where it stopped.

OUT/images/NAMEa.webp, NAMEb.jpg   pictures
OUT/records/NAME.json              what came of a job; written last: a job is done or it is not
OUT/build.json                     what the folder was made from
OUT/*.json, SOURCES.md         written by coco.py from the records
"""

import ctypes
import dataclasses
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clq_train.webui.sampler import Job

log = logging.getLogger(__name__)
FEWEST_BOXES, MOST_BOXES = 1, 400
QUALITY = 85  # of JPEG and WebP
JOBS_PER_BROWSER = 60  # a browser that runs for hours grows


@dataclass(frozen=True, slots=True)
class Render:
    """A job and where its page is."""

    job: Job
    url: str
    wait_ms: int
    dark: str
    font_url: str | None


@dataclass(frozen=True, slots=True)
class Browsers:
    """How the workers start Chromium: executable (None: playwright's own), fontconfig file."""

    executable: str | None
    fonts: Path | None


def run(renders: list[Render], out: Path, workers: int, browsers: Browsers) -> None:
    """Renders what is not done yet.

    Raises DataError when Chromium does not start, and when a worker dies.
    """
    for folder in ("images", "records"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    waiting = [r for r in renders if not record_path(out, r.job).is_file()]
    log.info("%d of %d pages are done", len(renders) - len(waiting), len(renders))
    context = get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (out, browsers, os.getpid()))
    try:
        futures = [pool.submit(_render, render) for render in waiting]
        for future in tqdm(as_completed(futures), total=len(futures), unit="page", disable=None):
            future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def record_path(out: Path, job: Job) -> Path:
    return out / "records" / f"{job.name}.json"


def records(out: Path) -> Iterator[dict[str, Any]]:
    """What came of every job that is done, in the order of their names."""
    for path in sorted((out / "records").glob("*.json")):
        yield json.loads(path.read_bytes())


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside and renames: the file is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(data)
    beside.replace(path)


def die_with_parent(parent: int) -> None:
    """Ends this process when its parent ends, however that ends (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


# ---- in a worker process


class _Worker:
    """Chromium of this process, started when it is needed and again after some jobs."""

    def __init__(self, out: Path, browsers: Browsers) -> None:
        from playwright.sync_api import sync_playwright

        self.out, self.browsers, self.done = out, browsers, 0
        self._player = sync_playwright().start()
        self._browser: Any = None

    def browser(self) -> Any:
        from clq_train.webui.browser import launch

        if self._browser is not None and (
            self.done % JOBS_PER_BROWSER == 0 or not self._browser.is_connected()
        ):
            self._browser.close()
            self._browser = None
        if self._browser is None:
            self._browser = launch(self._player, self.browsers.executable, self.browsers.fonts)
        self.done += 1
        return self._browser


_worker: _Worker | None = None


def _start_worker(out: Path, browsers: Browsers, parent: int) -> None:
    global _worker
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    _worker = _Worker(out, browsers)


def _render(render: Render) -> None:
    from playwright.sync_api import Error

    assert _worker is not None
    job, started = render.job, time.monotonic()
    record: dict[str, Any] = {"job": dataclasses.asdict(job), "views": []}
    try:
        record["views"] = _views(render, _worker)
    except Error as error:
        record["error"] = error.message.splitlines()[0]
    record["seconds"] = round(time.monotonic() - started, 2)
    write_whole(record_path(_worker.out, job), json.dumps(record, separators=(",", ":")).encode())


def _views(render: Render, worker: _Worker) -> list[dict[str, Any]]:
    from clq_train.webui.browser import shots, version
    from clq_train.webui.labels import label_shot

    browser = worker.browser()
    found: list[dict[str, Any]] = []
    taken = shots(
        browser,
        render.job,
        render.url,
        wait_ms=render.wait_ms,
        dark=render.dark,
        fonts=render.font_url,
    )
    for letter, (view, shot) in zip("abcdefgh", taken, strict=False):
        image, labels = label_shot(shot, render.job.scale)
        entry: dict[str, Any] = {"browser": version(browser)}
        wanted = round(view.width * render.job.scale), round(view.height * render.job.scale)
        if not shot.stable:
            entry["refused"] = "it kept moving"
        elif max(abs(a - b) for a, b in zip(image.size, wanted, strict=True)) > 1:
            entry["refused"] = f"the picture is {image.width} x {image.height}"
        elif not FEWEST_BOXES <= len(labels) <= MOST_BOXES and not _is_empty_on_purpose(render.job):
            entry["refused"] = f"{len(labels)} boxes"
        else:
            name = f"{render.job.name}{letter}.{view.format}"
            _save(image, worker.out / "images" / name)
            entry |= {"file": name, "width": image.width, "height": image.height}
            entry["labels"] = [[o.fine, *o.rect] for o in labels]
        found.append(entry)
    return found


def _is_empty_on_purpose(job: Job) -> bool:
    return job.page.startswith("empty/")


def _save(image: Any, path: Path) -> None:
    beside = path.with_name(f".{path.name}")
    kind = "JPEG" if path.suffix == ".jpg" else "WEBP"
    image.save(
        beside, kind, quality=QUALITY, **({"method": 4} if kind == "WEBP" else {"optimize": True})
    )
    beside.replace(path)
