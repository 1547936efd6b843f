"""Thousands of bodies that no honest client sends, to a real server process.

Each gets a documented answer, never a 500; memory stays bounded; the next good request is answered.
"""

import contextlib
import http.client
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hostile_bodies import Hostile, all_hostile
from pictures import cells
from service_process import PATIENCE_S, Running, running

SEED = 20261124
MAX_BODY_BYTES = 2**20
MAX_PIXELS = 4_000_000
# At its largest, an image of MAX_PIXELS is there in Pillow (4 bytes a pixel), as an array, once
# more for the resize, and compressed; plus what the allocator keeps.
MAX_GROWTH_KIB = 96 * 1024
DOCUMENTS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module", params=[0, 1], ids=["decoding in threads", "in a process"])
def service(tiny_bundle: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    limits = {"max_body_bytes": MAX_BODY_BYTES, "max_pixels": MAX_PIXELS, "log_level": "error"}
    limits["decode_workers"] = request.param
    arguments = [f"--set={name}={value}" for name, value in limits.items()]
    with running("--bundle", str(tiny_bundle), "--threads", "1", *arguments) as service:
        yield service


def memory_kib(service: Running, what: str) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    (found,) = re.findall(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found)


def forget_peak(service: Running) -> None:
    Path(f"/proc/{service.process.pid}/clear_refs").write_text("5")  # proc(5): resets VmHWM


class Sender:
    """Sends requests over one connection, and another when the service has closed it."""

    def __init__(self, service: Running) -> None:
        self._connection = http.client.HTTPConnection(*service.address, timeout=PATIENCE_S)

    def send(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str, bytes]:
        """Status, content type and body of the answer."""
        # Refused while it was still being sent: the answer may be there all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.request("POST", path, body, headers)
        try:
            answer = self._connection.getresponse()
            return answer.status, answer.headers["content-type"] or "", answer.read()
        except (ConnectionResetError, http.client.RemoteDisconnected):
            self._connection.close()
            assert len(body) > MAX_BODY_BYTES, "the connection was closed without an answer"
            return 413, "application/problem+json", b""
        finally:
            if self._connection.sock is None or len(body) > MAX_BODY_BYTES:
                self._connection.close()

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def documented_statuses() -> set[int]:
    paths = json.loads((DOCUMENTS / "openapi.json").read_text())["paths"]
    found = {
        int(status) for path in paths.values() for o in path.values() for status in o["responses"]
    }
    return {status for status in found if status < 500}


def documented_codes() -> set[str]:
    page = Path(__file__).parents[2] / "serve" / "clq_serve" / "docs.html"
    return set(re.findall(r'<tr id="(\w+)">', page.read_text()))


def assert_good_request_is_answered(sender: Sender) -> None:
    status, _, body = sender.send("/v1/detect", cells(), {"Content-Type": "image/png"})
    assert status == 200, body
    assert [d["label"] for d in json.loads(body)["detections"]] == ["red", "green", "blue"]


def problems_in(status: int, content_type: str, body: bytes) -> list[dict]:
    """The problem that an answer is, or those in it."""
    if not body or status in (200, 304):
        if status == 200 and content_type == "application/json" and body.startswith(b'[{"ok"'):
            return [item["problem"] for item in json.loads(body) if not item["ok"]]
        return []
    assert content_type == "application/problem+json", (status, body[:200])
    problem = json.loads(body)
    assert problem["status"] == status
    return [problem]


def bombard(service: Running, bodies: Sequence[Hostile]) -> Counter[int]:
    """How many answers of each status there were; fails at the first that must not be."""
    statuses, codes = documented_statuses(), documented_codes()
    seen: Counter[int] = Counter()
    with Sender(service) as sender:
        for _ in range(30):
            assert_good_request_is_answered(sender)
        before_kib = memory_kib(service, "VmRSS")
        forget_peak(service)
        for number, hostile in enumerate(bodies):
            status, content_type, body = sender.send(hostile.path, hostile.body, hostile.headers)
            assert status in statuses, (hostile.name, status, body[:300])
            for problem in problems_in(status, content_type, body):
                assert problem["code"] in codes, (hostile.name, problem)
                assert problem["status"] < 500, (hostile.name, problem)
                assert not re.search(r"Traceback|site-packages|File \"", json.dumps(problem))
            seen[status] += 1
            if number % 40 == 0:
                assert_good_request_is_answered(sender)
        assert_good_request_is_answered(sender)
    grown_kib = memory_kib(service, "VmHWM") - before_kib
    kept_kib = memory_kib(service, "VmRSS") - before_kib
    print(f"\n{len(bodies)} bodies: {dict(sorted(seen.items()))}; peak +{grown_kib} KiB, "
          f"kept +{kept_kib} KiB")  # fmt: skip
    assert grown_kib < MAX_GROWTH_KIB
    assert kept_kib < MAX_GROWTH_KIB
    assert service.process.poll() is None
    return seen


def test_there_are_two_thousand_different_bodies() -> None:
    made = all_hostile(SEED)
    assert len(made) >= 2000
    assert len({(h.path, h.body, *sorted(h.headers.items())) for h in made}) >= 2000
    assert made[:300] == all_hostile.__wrapped__(SEED)[:300]


def test_a_sample_of_hostile_bodies_gets_documented_answers(service: Running) -> None:
    seen = bombard(service, all_hostile(SEED)[:200])
    assert set(seen) >= {400, 413, 415, 422}


@pytest.mark.slow
def test_all_hostile_bodies_get_documented_answers(service: Running) -> None:
    seen = bombard(service, all_hostile(SEED))
    assert set(seen) >= {200, 400, 404, 406, 413, 415, 422}


def test_clients_that_stop_in_the_middle_hinder_nobody(service: Running) -> None:
    head = "POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    starts = [
        b"P",
        b"POST /v1/detect HTTP/1.1\r\nHos",
        f"{head}Content-Length: 500\r\n\r\n".encode(),
        f"{head}Content-Length: 500\r\n\r\n".encode() + cells()[:100],
        f"{head}Transfer-Encoding: chunked\r\n\r\n5\r\nabc".encode(),
    ]
    stuck = []
    for start in starts * 4:
        stuck.append(socket.create_connection(service.address, timeout=PATIENCE_S))
        stuck[-1].sendall(start)
    with Sender(service) as sender:
        for _ in range(5):
            assert_good_request_is_answered(sender)
        for connection in stuck:
            connection.close()
        for _ in range(5):
            assert_good_request_is_answered(sender)


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: -5\r\n\r\n",
        b"Content-Length: 5, 6\r\n\r\nabcde",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"Transfer-Encoding: gzip\r\n\r\nabc",
        b"Bad Header\r\n\r\n",
    ],
)
def test_broken_framing_is_a_400_or_a_closed_connection(service: Running, framing: bytes) -> None:
    with socket.create_connection(service.address, timeout=PATIENCE_S) as connection:
        connection.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: x\r\n" + framing)
        connection.shutdown(socket.SHUT_WR)
        received = connection.recv(10_000)
    assert received == b"" or re.match(rb"HTTP/1.1 4\d\d ", received), received
    with Sender(service) as sender:
        assert_good_request_is_answered(sender)
