"""200 reloads under load: no wrong answer, no failed answer, no memory that is kept.

The images are coded: which cells are painted says what the answer must be, and the class names and
the digest of an answer must belong to one and the same bundle.
"""

import io
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

RELOADS = 200
CLIENTS = 4
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
# One loaded tiny model that is not freed costs 700 KB (two sessions and the golden examples;
# measured by loading 50 and keeping them). The allocator's own level wanders by up to 1 MB, which
# is 13 KB for each of the 75 reloads compared here (8 KB were seen). So the bound is above that
# noise and finds a leak of one model in fourteen reloads.
KEPT_KB_PER_RELOAD = 50


def coded_image(code: int) -> tuple[bytes, set[tuple[str, int, int]]]:
    """A PNG and the (colour, left, top) of its cells; every code of 0..999 looks different."""
    pixels = np.zeros((96, 160, 3), np.uint8)
    expected = set()
    for cell in range(5):
        digit = code // 4**cell % 4
        if digit:
            colour = list(COLOURS)[digit - 1]
            pixels[32:64, 32 * cell : 32 * cell + 32] = COLOURS[colour]
            expected.add((colour, 32 * cell, 32))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), expected


class Client(threading.Thread):
    """Asks without a pause until it is told to stop; keeps what was wrong."""

    def __init__(self, url: str, number: int, marks: dict[str, str], stop: threading.Event) -> None:
        super().__init__()
        self.answers = 0
        self.versions: set[str] = set()
        self.wrong: list[str] = []
        self._url, self._number, self._marks, self._stop_asking = url, number, marks, stop

    def run(self) -> None:
        rng = np.random.default_rng(self._number)
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._stop_asking.is_set():
                image, expected = coded_image(int(rng.integers(0, 4**5)))
                try:
                    answer = client.post("/v1/detect", content=image, headers=OCTETS)
                    self._check(answer, expected)
                except httpx.HTTPError as err:
                    self.wrong.append(repr(err))
                self.answers += 1

    def _check(self, answer: httpx.Response, expected: set[tuple[str, int, int]]) -> None:
        if answer.status_code != 200:
            self.wrong.append(answer.text)
            return
        body = answer.json()
        mark = self._marks[body["model"]["digest"]]
        self.versions.add(mark)
        found = {
            (one["label"], round(one["box"][0]), round(one["box"][1])) for one in body["detections"]
        }
        if found != {(mark + colour, left, top) for colour, left, top in expected}:
            self.wrong.append(f"{mark}: expected {expected}, got {found}")


OCTETS = {"Content-Type": "application/octet-stream"}


@contextmanager
def running(log: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """A service process, its URL and that of its admin listener; it writes into the file `log`."""
    command = [sys.executable, "-u", "-c", "from clq_serve.cli import main; main()", "run"]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *arguments], stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 60
        while "ready: " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        found = dict(re.findall(r"(admin|ready): .*?(http://127\.0\.0\.1:\d+)", log.read_text()))
        yield process, found["ready"], found["admin"]
    finally:
        process.kill()
        process.wait(60)


def resident_kb(process: subprocess.Popen[bytes]) -> int:
    """VmRSS of the process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found
    return int(found[1])


@pytest.mark.slow
def test_200_reloads_under_load_lose_nothing_and_keep_nothing(repository, tmp_path: Path) -> None:
    marks: dict[str, str] = {}

    def add(version: int, mark: str) -> None:
        folder = repository("tiny", version, mark)
        tree = (folder / "manifest.json").read_text()
        digest = re.search(r'"model\.onnx": \{\s*"sha256": "([0-9a-f]{64})"', tree)
        assert digest
        marks[f"sha256:{digest[1]}"] = mark

    add(1, "v1-")
    stop = threading.Event()
    resident: list[int] = []
    refused = 0
    arguments = ("--port", "0", "--models", str(repository.root), "--threads", "2")
    quiet = ("--log-level", "error")
    with running(tmp_path / "log", *arguments, *quiet) as (process, url, admin):
        clients = [Client(url, number, marks, stop) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        with httpx.Client(base_url=admin, timeout=60) as operator:
            for turn in range(RELOADS):
                version = 1 + turn // 2 % 5
                if turn % 5 == 4:  # a bundle that does not prove itself; the old one stays
                    repository.spoil(repository("tiny", version, "bad-"))
                    answer = operator.post("/admin/models/tiny/load", params={"version": version})
                    assert (answer.status_code, answer.json()["code"]) == (422, "model_refused")
                    refused += 1
                else:  # a version anew, or the same version with other files
                    add(version, f"v{version}.{turn}-")
                    answer = operator.post("/admin/models/tiny/load", params={"version": version})
                    assert answer.status_code == 200, answer.text
                resident.append(resident_kb(process))
        stop.set()
        for client in clients:
            client.join(60)
    answers = sum(client.answers for client in clients)
    assert [wrong for client in clients for wrong in client.wrong][:3] == []
    assert refused == RELOADS // 5
    assert answers > RELOADS
    assert len(set().union(*(client.versions for client in clients))) > RELOADS // 10
    half = resident[RELOADS // 2 :]
    quarter = len(half) // 4
    grown_kb = statistics.median(half[-quarter:]) - statistics.median(half[:quarter])
    slope = grown_kb / (0.75 * len(half))
    print(f"{answers} answers, {slope:.1f} KB kept for each reload, {resident[-1] // 1024} MB")
    assert slope < KEPT_KB_PER_RELOAD, resident[::10]
