"""Detects in every image that arrives in a folder: python watch_folder.py INCOMING RESULTS

For each INCOMING/NAME the answer becomes RESULTS/NAME.json, or RESULTS/NAME.error.json for an image
that the service refuses.  What has a result is not sent again, so it may be ended and started again
at any time.  A file is taken when its size and time of change have been the same at two looks, so
that one which is still being copied is left alone; writers who rename into the folder need no wait.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from clq_client import Client, ClqError, ImageRefused

LOOK_S = 1.0
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp"}


def main(incoming: Path, results: Path) -> None:
    results.mkdir(parents=True, exist_ok=True)
    with Client(deadline_s=300) as client:  # patient: the service may be restarted meanwhile
        for image in arrivals(incoming, results):
            name, answer = f"{image.name}.json", {}
            try:
                answer = client.detect(image, score=0.3).to_dict()
            except ImageRefused as error:
                name, answer = f"{image.name}.error.json", error.to_dict()
            except (
                ClqError,
                OSError,
            ) as error:  # says nothing about the image: later again
                print(f"{image}: {error}", file=sys.stderr, flush=True)
                continue
            write(results / name, json.dumps(answer))
            print(image, "->", name, flush=True)


def arrivals(incoming: Path, results: Path) -> Iterator[Path]:
    """Images without a result that did not change between two looks; never ends."""
    before: dict[Path, tuple[int, int]] = {}
    while True:
        now: dict[Path, tuple[int, int]] = {}
        for image in sorted(incoming.iterdir()):
            if image.suffix.lower() not in SUFFIXES or done(image, results):
                continue
            try:
                seen = image.stat()
            except FileNotFoundError:  # taken away meanwhile
                continue
            now[image] = (seen.st_size, seen.st_mtime_ns)
            if seen.st_size and before.get(image) == now[image]:
                yield image
        before = now
        time.sleep(LOOK_S)


def done(image: Path, results: Path) -> bool:
    return any((results / f"{image.name}{end}").exists() for end in (".json", ".error.json"))


def write(path: Path, text: str) -> None:
    """All of the file or nothing: a reader of the results never sees half of one."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
