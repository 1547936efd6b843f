"""When there is too much to do, the service says so at once, and never loses an answer."""

import contextlib
import io
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from clq_serve.bundle import load_bundle
from clq_serve.candidates import Candidates
from clq_serve.detector import Detector
from clq_serve.engine import OnnxEngine
from clq_serve.loading import LoadedModel
from clq_serve.nms import ClassNms

PATIENCE_S = 60  # how long anything may take on a machine that is busy with something else


def picture() -> bytes:
    """Three detections, as in test_api.py."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    for index in range(3):
        pixels[:32, 32 * index : 32 * index + 32, index] = 250 - 50 * index
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def post(
    server: str, data: bytes, timeout: float = PATIENCE_S, headers: dict[str, str] | None = None
) -> httpx.Response:
    all_headers = {"Content-Type": "image/png"} | (headers or {})
    return httpx.post(f"{server}/v1/detect", content=data, headers=all_headers, timeout=timeout)


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code)
    return body


class GatedEngine:
    """The real engine behind a gate that the test opens."""

    def __init__(self, engine: OnnxEngine) -> None:
        self.open = threading.Event()
        self.calls = 0
        self._engine = engine

    def run(self, batch: np.ndarray) -> Candidates:
        self.calls += 1
        assert self.open.wait(PATIENCE_S)
        return self._engine.run(batch)


class BrokenEngine:
    """An engine with a bug."""

    def run(self, batch: np.ndarray) -> Candidates:
        raise RuntimeError("secret detail of /a/path")


def loaded(folder: Path, engine: GatedEngine | BrokenEngine) -> LoadedModel:
    bundle = load_bundle(folder)
    return LoadedModel(
        bundle, (Detector(engine, ClassNms(), bundle.manifest.input.rule),), None, "test", 0
    )


@pytest.fixture
def gate(tiny_bundle: Path) -> Iterator[GatedEngine]:
    engine = GatedEngine(OnnxEngine(load_bundle(tiny_bundle), threads=1))
    yield engine
    engine.open.set()


def wait_for(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_request_too_many_is_refused_at_once(
    start_server, gate: GatedEngine, tiny_bundle: Path
) -> None:
    server = start_server(loaded(tiny_bundle, gate), max_pending=1)
    with ThreadPoolExecutor(1) as pool:
        inside = pool.submit(post, server, picture())
        wait_for(lambda: gate.calls == 1)
        answer = post(server, picture())  # the gate is still closed: nothing was waited for
        body = assert_problem(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == str(body["retry_after"])
        assert 1 <= body["retry_after"] <= 3
        assert (body["limit"], body["observed"]) == (1, 2)
        assert httpx.get(f"{server}/healthz", timeout=PATIENCE_S).status_code == 200
        gate.open.set()
        assert inside.result().status_code == 200
    assert post(server, picture()).status_code == 200


def test_a_late_result_is_a_504_that_names_the_stage(
    start_server, gate: GatedEngine, tiny_bundle: Path
) -> None:
    server = start_server(loaded(tiny_bundle, gate), request_timeout_s=2)
    body = assert_problem(post(server, picture()), 504, "deadline_exceeded")
    assert body["stage"] == "infer"
    assert body["limit"] == 2
    gate.open.set()
    assert post(server, picture()).status_code == 200


def test_a_request_behind_a_slow_one_runs_out_of_time_in_the_queue(
    start_server, gate: GatedEngine, tiny_bundle: Path
) -> None:
    server = start_server(loaded(tiny_bundle, gate), request_timeout_s=2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, server, picture())
        wait_for(lambda: gate.calls == 1)
        second = pool.submit(post, server, picture())
        stages = {future.result().json()["stage"] for future in (first, second)}
    assert "infer" in stages
    gate.open.set()


def test_a_body_that_does_not_arrive_is_a_408(start_server) -> None:
    server = start_server(request_timeout_s=0.3)
    port = int(server.rpartition(":")[2])
    lines = ["POST /v1/detect HTTP/1.1", "Host: x", "Content-Type: image/png", "Content-Length: 99"]
    head = "\r\n".join([*lines, "", ""])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(head.encode() + b"only this")
        received = connection.recv(10_000).decode()
    assert received.startswith("HTTP/1.1 408 ")


def test_the_engine_does_not_run_for_a_client_that_has_left(
    start_server, gate: GatedEngine, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="clq_serve.request_log")
    server = start_server(loaded(tiny_bundle, gate))
    with ThreadPoolExecutor(1) as pool:
        stays = pool.submit(post, server, picture())
        wait_for(lambda: gate.calls == 1)
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                post(server, picture(), timeout=0.3)
        wait_for(lambda: [status_of(record) for record in caplog.records].count(499) == 3)
        gate.open.set()
        assert stays.result().status_code == 200
    assert post(server, picture()).status_code == 200
    assert gate.calls == 2


def status_of(record: logging.LogRecord) -> int:
    """The status in a line of the request log; 0 in any other."""
    return int(getattr(record, "fields", {}).get("status", 0))


def test_a_bug_is_a_500_without_its_details_and_the_next_request_is_answered(
    start_server, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server(loaded(tiny_bundle, BrokenEngine()))
    answer = post(server, picture(), headers={"X-Request-ID": "the-one"})
    assert_problem(answer, 500, "internal")
    assert "secret" not in answer.text
    assert httpx.get(f"{server}/healthz", timeout=PATIENCE_S).status_code == 200
    record = next(r for r in caplog.records if "the-one failed" in r.getMessage())
    assert record.exc_info is not None


def refusal_of_a_body_that_never_comes(server: str) -> str:
    """What a request with a short deadline gets, once the queue is long enough to refuse it."""
    lines = ["POST /v1/detect HTTP/1.1", "Host: x", "Content-Type: image/png"]
    head = [*lines, "Content-Length: 1000000", "X-Request-Timeout-Ms: 1000", "", ""]
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        port = int(server.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=0.5) as connection:
            connection.sendall("\r\n".join(head).encode())
            with contextlib.suppress(TimeoutError):
                return connection.recv(10_000).decode()
    raise AssertionError("never refused")


def test_a_request_that_would_be_late_is_refused_before_its_body_is_read(
    start_server, gate: GatedEngine, tiny_bundle: Path
) -> None:
    server = start_server(loaded(tiny_bundle, gate))
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(post, server, picture())  # it takes a while: that is the pace
        wait_for(lambda: gate.calls == 1)
        time.sleep(1.0)
        gate.open.set()
        assert first.result().status_code == 200
        gate.open.clear()
        inside = [pool.submit(post, server, picture()) for _ in range(3)]
        wait_for(lambda: gate.calls == 2)
        received = refusal_of_a_body_that_never_comes(server)
        assert received.startswith("HTTP/1.1 503 ")
        assert '"limit_name":"deadline"' in received
        assert "retry-after: " in received.lower()
        gate.open.set()
        assert [future.result().status_code for future in inside] == [200] * 3


def test_an_engine_that_hangs_makes_the_service_not_ready_until_it_is_rebuilt(
    start_server, gate: GatedEngine, tiny_bundle: Path
) -> None:
    rebuild = threading.Event()
    model = loaded(tiny_bundle, gate)

    def fresh(index: int | None) -> Detector:
        assert rebuild.wait(PATIENCE_S)
        engine = OnnxEngine(load_bundle(tiny_bundle), threads=1)
        return Detector(engine, ClassNms(), model.bundle.manifest.input.rule)

    model.fresh = fresh
    server = start_server(model, engine_timeout_s=0.3)
    assert httpx.get(f"{server}/readyz", timeout=PATIENCE_S).status_code == 200
    assert_problem(post(server, picture()), 503, "engine_down")
    body = assert_problem(httpx.get(f"{server}/readyz", timeout=PATIENCE_S), 503, "engine_down")
    assert "has not answered for 0.3 s" in body["detail"]
    assert_problem(post(server, picture()), 503, "engine_down")
    rebuild.set()
    wait_for(lambda: httpx.get(f"{server}/readyz", timeout=PATIENCE_S).status_code == 200)
    assert post(server, picture()).status_code == 200
