"""A peer for the client: a real HTTP server on 127.0.0.1 that answers as it is told.

It stands in for the service, which has its own tests; nothing of the client is replaced.
"""

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

DIGEST = "sha256:" + "ab" * 32
LABELS = ["button", "text field"]


@dataclass
class Step:
    """One scripted answer; cut ends the connection "before" the answer or in its "body"."""

    status: int = 200
    body: bytes | None = None  # None: what a service would answer
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drip_s: float = 0.0  # pause between the bytes of the body
    header_drip_s: float = 0.0  # pause between the bytes of endless headers
    cut: str = ""


@dataclass
class Seen:
    """One request as it came in."""

    at_s: float
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


class Peer:
    """The server and its script; with the script at its end it answers like a service."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.detect_steps: list[Step] = []  # the same, for images alone
        self.digest = DIGEST
        self.seen: list[Seen] = []
        self.slow_s: dict[bytes, float] = {}  # sent bytes -> delay of their answer
        self.refused: dict[bytes, Step] = {}  # sent bytes -> their answer
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def detects(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.path.endswith("/detect")]

    def answers(self, **step: object) -> None:
        """Adds one answer to the script."""
        self.steps.append(Step(**step))

    def problem(self, status: int, code: str = "", **members: object) -> None:
        """Adds one problem+json answer to the script."""
        self.steps.append(self.problem_step(status, code, **members))

    @staticmethod
    def problem_step(status: int, code: str = "", **members: object) -> Step:
        headers = {}
        if "retry_after" in members:
            headers["Retry-After"] = str(members["retry_after"])
        body = {"type": f"/docs#{code}", "title": "A title", "status": status} | members
        body |= {"detail": f"detail of {code}", "code": code, "request_id": "from-the-body"}
        return Step(status, json.dumps(body).encode(), "application/problem+json", headers)

    def step_for(self, seen: Seen) -> Step:
        with self._lock:
            self.seen.append(seen)
            if seen.path.endswith("/detect"):
                if seen.body in self.refused:
                    return self.refused[seen.body]
                for steps in (self.steps, self.detect_steps):
                    if steps:
                        return steps.pop(0)
                return Step(delay_s=self.slow_s.get(seen.body, 0.0))
            if seen.path in ("/readyz", "/v1/models") or seen.path.endswith("/labels"):
                return self.steps.pop(0) if self.steps else Step()
            return self.problem_step(404, "not_found")

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, peer: Peer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.peer = peer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_POST(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = parse_qs(parts.query)
        seen = Seen(time.monotonic(), self.command, parts.path, query, headers, body)
        step = self.server.peer.step_for(seen)
        time.sleep(step.delay_s)
        if step.cut == "before":
            self.close_connection = True
            return
        data = step.body if step.body is not None else _honest(seen, self.server.peer.digest)
        if data is None:
            step = Peer.problem_step(422, "corrupt")
            data = step.body or b""
        try:
            self._send(step, data, headers.get("x-request-id", ""))
        except OSError:
            self.close_connection = True  # the client has gone

    def _send(self, step: Step, data: bytes, request_id: str) -> None:
        if step.header_drip_s:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
            while True:
                self.wfile.write(b"x")
                time.sleep(step.header_drip_s)
        self.send_response(step.status)
        sent = {"Content-Type": step.content_type, "Content-Length": str(len(data))}
        for name, value in (sent | {"X-Request-ID": request_id} | step.headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if step.cut == "body":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif step.drip_s:
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(step.drip_s)
        else:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _honest(seen: Seen, digest: str = DIGEST) -> bytes | None:
    """What a service with a very simple model answers; None for bytes that are no image."""
    if seen.path == "/readyz":
        return json.dumps({"status": "ready"}).encode()
    if seen.path == "/v1/models":
        model = {"name": "fake", "version": 3, "digest": digest, "classes": LABELS}
        return json.dumps({"models": [model]}).encode()
    if seen.path.endswith("/labels"):
        items = [{"class_id": i, "label": name, "category_id": i} for i, name in enumerate(LABELS)]
        return json.dumps({"labels": items}).encode()
    try:
        with Image.open(io.BytesIO(seen.body)) as stored:
            stored.load()
            kind, turned = stored.format, stored.getexif().get(0x0112, 1) != 1
            width, height = ImageOps.exif_transpose(stored).size
    except OSError:
        return None
    answer = detect_answer(width, height, seen.headers.get("x-request-id", "no-id"))
    answer["image"] |= {"format": kind, "orientation_applied": turned}
    answer["image"] |= {"sha256": hashlib.sha256(seen.body).hexdigest()}
    return json.dumps(answer).encode()


def detect_answer(width: int, height: int, request_id: str) -> dict[str, object]:
    """The answer of the interface: a button in the middle, a text field at the top left."""
    middle = [width * 0.25, height * 0.25, width * 0.75, height * 0.75]
    corner = [0.0, 0.0, width * 0.2, height * 0.125]
    scores = {"quality": 0.75, "cls_score": 0.9}
    return {
        "id": request_id,
        "model": {"name": "fake", "version": 3, "digest": DIGEST},
        "image": {
            "width": width,
            "height": height,
            "orientation_applied": False,
            "format": "PNG",
            "sha256": "cd" * 32,
        },
        "detections": [
            {"box": middle, "score": 0.875, "class_id": 0, "label": LABELS[0]} | scores,
            {"box": corner, "score": 0.5, "class_id": 1, "label": LABELS[1]} | scores,
        ],
        "timing_ms": {
            "decode": 1.0,
            "queue": 0.5,
            "infer": 12.25,
            "post": 0.25,
            "total": 14.5,
            "batch_size": 1,
        },
    }


@pytest.fixture
def peer() -> Iterator[Peer]:
    server = Peer()
    yield server
    server.close()


@pytest.fixture
def answer() -> dict[str, object]:
    """A correct answer about an image of 400x200 pixels."""
    return detect_answer(400, 200, "an-id")


@pytest.fixture
def png() -> bytes:
    """An image file of 400x200 pixels."""
    return _png_of(400, 200, 200)


@pytest.fixture
def png_of() -> Callable[[int, int, int], bytes]:
    """Makes an image file of (width, height, grey)."""
    return _png_of


def _png_of(width: int, height: int, grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (grey, grey, grey)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the service's own tests: 32 px cells, classes red, green and blue."""
    return _serve_fixtures().build_tiny_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def service(tiny_bundle: Path) -> Iterator[str]:
    """Base URL of the real service, in a thread of this process."""
    fixtures = _serve_fixtures()
    with fixtures.running(fixtures.Settings(bundle=tiny_bundle, threads=1), None) as url:
        yield url


@pytest.fixture
def start_service(tiny_bundle: Path) -> Iterator[Callable[..., str]]:
    """start_service(**settings) -> base URL of a real service of its own."""
    fixtures = _serve_fixtures()
    with contextlib.ExitStack() as stack:

        def start(**settings: object) -> str:
            values = {"bundle": tiny_bundle, "threads": 1} | settings
            checked = fixtures.Settings.model_validate(values)
            return stack.enter_context(fixtures.running(checked, None))

        yield start


@functools.cache
def _serve_fixtures() -> ModuleType:
    path = Path(__file__).parents[1] / "serve" / "conftest.py"
    spec = importlib.util.spec_from_file_location("serve_fixtures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clq(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """clq(*arguments, stdin=b""): the command in tmp_path, in this process: that is faster."""
    from clq_client.commands import app

    def run(*arguments, stdin=b""):
        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    return run
