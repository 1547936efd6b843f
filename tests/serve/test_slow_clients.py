"""Clients that are slow, silent, endless or too many, over raw sockets."""

import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from service_process import PATIENCE_S, Running, running

TIMEOUT_S = 0.6  # of the service under test, for headers and for stalls
LIMITS = {
    "header_timeout_s": TIMEOUT_S,
    "stall_timeout_s": TIMEOUT_S,
    "min_bytes_per_s": 1000,
    "keep_alive_s": 0.6,
    "max_connections": 8,
    "max_header_bytes": 4096,
}
POST = b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 5000\r\n"


@pytest.fixture(scope="module")
def service(tiny_bundle: Path) -> Iterator[Running]:
    options = [option for name, value in LIMITS.items() for option in ("--set", f"{name}={value}")]
    with running("--bundle", str(tiny_bundle), "--threads", "1", *options) as found:
        yield found


@pytest.fixture(autouse=True)
def _alone(service: Running) -> None:
    """Waits until no connection of another test is left."""
    deadline = time.monotonic() + PATIENCE_S
    while counted(service, "clq_connections") > 1:  # the one that asks
        assert time.monotonic() < deadline
        time.sleep(0.05)


def counted(service: Running, name: str) -> float:
    text = httpx.get(f"{service.admin}/metrics", timeout=PATIENCE_S).text
    values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(values[0]) if values else 0.0


def cut_off(service: Running, reason: str) -> float:
    return counted(service, f'clq_connections_cut_off_total{{reason="{reason}"}}')


def connect(service: Running) -> socket.socket:
    return socket.create_connection(service.address, timeout=PATIENCE_S)


def read_until_closed(connection: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def read_ok(connection: socket.socket) -> None:
    """Reads the whole answer of GET /healthz."""
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 ")


def drip(connection: socket.socket, data: bytes, pause_s: float) -> bytes:
    """What the service answers while `data` is sent again and again, a byte at a time."""
    deadline = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < deadline:
            for index in range(len(data)):
                connection.sendall(data[index : index + 1])
                if select.select([connection], [], [], pause_s)[0]:
                    return read_until_closed(connection)
    except (BrokenPipeError, ConnectionResetError):
        return b""
    pytest.fail("the service never cut the connection off")


def problem(answer: bytes) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert b"application/problem+json" in head
    found = json.loads(body)
    assert head.split()[1] == str(found["status"]).encode()
    return found


def test_a_connection_without_a_request_is_closed(service: Running) -> None:
    before = cut_off(service, "slow_headers")
    with connect(service) as connection:
        assert read_until_closed(connection) == b""
    assert cut_off(service, "slow_headers") == before + 1


def test_a_half_sent_header_is_closed(service: Running) -> None:
    with connect(service) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHos")
        assert read_until_closed(connection) == b""


def test_a_dripped_header_is_closed_however_lively_it_is(service: Running) -> None:
    with connect(service) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert drip(connection, b"X-A: b\r\n", 0.05) == b""


def test_a_dripped_header_of_a_second_request_is_closed_too(service: Running) -> None:
    with connect(service) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        read_ok(connection)
        assert drip(connection, b"GET /healthz HTTP/1.1\r\nX-A: b\r\n", 0.05) == b""


def test_a_half_sent_body_is_answered_408(service: Running) -> None:
    before = cut_off(service, "slow_body")
    with connect(service) as connection:
        connection.sendall(POST + b"X-Request-ID: half\r\n\r\n" + bytes(100))
        found = problem(read_until_closed(connection))
    assert (found["status"], found["code"]) == (408, "upload_timeout")
    assert (found["instance"], found["request_id"]) == ("/v1/detect", "half")
    assert cut_off(service, "slow_body") == before + 1


def test_a_dripped_body_is_answered_408(service: Running) -> None:
    with connect(service) as connection:
        connection.sendall(POST + b"\r\n")
        assert problem(drip(connection, bytes(1000), 0.02))["status"] == 408


def test_a_body_at_the_slowest_accepted_pace_is_answered(service: Running) -> None:
    with connect(service) as connection:
        connection.sendall(POST + b"\r\n")
        for _ in range(20):  # longer than the time for a stall, and twice the pace
            connection.sendall(bytes(250))
            time.sleep(0.1)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 415 "), answer  # 5000 zeros are no image


def test_the_rest_of_a_body_that_was_refused_already_is_not_waited_for(service: Running) -> None:
    too_large = POST.replace(b"5000", b"%d" % (10**9))
    with connect(service) as connection:
        connection.sendall(too_large + b"\r\n")
        answer = read_until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_an_idle_connection_is_kept_for_a_while_and_then_closed(service: Running) -> None:
    with connect(service) as connection:
        for _ in range(2):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            read_ok(connection)
        assert read_until_closed(connection) == b""


def test_an_answer_that_is_not_read_is_given_up(service: Running) -> None:
    before = cut_off(service, "slow_reader")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE_S)
        connection.connect(service.address)
        request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        deadline = time.monotonic() + PATIENCE_S
        connection.setblocking(False)
        while cut_off(service, "slow_reader") == before:  # it asks on and on, and never reads
            assert time.monotonic() < deadline
            try:
                connection.send(request * 4)
            except BlockingIOError:
                time.sleep(0.05)
            except (BrokenPipeError, ConnectionResetError):
                break
        assert cut_off(service, "slow_reader") == before + 1


def test_endless_headers_are_answered_431(service: Running) -> None:
    with connect(service) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-A: " + b"a" * 5000)
        assert problem(read_until_closed(connection))["code"] == "headers_too_large"


def test_an_endless_trailer_is_cut_off(service: Running) -> None:
    head = POST.replace(b"Content-Length: 5000", b"Transfer-Encoding: chunked")
    with connect(service) as connection:
        connection.sendall(head + b"\r\n0\r\nX-A: " + b"a" * 5000)
        assert problem(read_until_closed(connection))["status"] == 431


def test_what_is_not_http_gets_a_problem(service: Running) -> None:
    with connect(service) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # TLS
        assert problem(read_until_closed(connection))["code"] == "bad_http"


def test_pipelined_requests_are_answered_in_order_up_to_a_limit(service: Running) -> None:
    request = b"GET /v1/labels?%d HTTP/1.1\r\nHost: x\r\nX-Request-ID: r%d\r\n\r\n"
    with connect(service) as connection:
        connection.sendall(b"".join(request % (i, i) for i in range(10)))
        received = b""
        while received.count(b"HTTP/1.1 200") < 10 or not received.endswith(b"]}"):
            received += connection.recv(65536)
    order = [
        line.split()[1]
        for line in received.splitlines()
        if line.lower().startswith(b"x-request-id:")
    ]
    assert order == [b"r%d" % i for i in range(10)]
    before = cut_off(service, "too_many_pipelined")
    with connect(service) as connection:
        connection.sendall(b"GET /v1/labels HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        read_until_closed(connection)
    assert cut_off(service, "too_many_pipelined") == before + 1


def test_one_connection_too_many_is_told_so(service: Running) -> None:
    limit = int(LIMITS["max_connections"])
    with ExitStack() as stack:
        for _ in range(limit):
            kept = stack.enter_context(connect(service))
            kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            read_ok(kept)
        with connect(service) as connection:
            connection.sendall(b"GET /v1/labels HTTP/1.1\r\nHost: x\r\n\r\n")
            found = problem(read_until_closed(connection))
            assert (found["status"], found["code"]) == (503, "too_many_connections")
        with connect(service) as connection:  # or it would be restarted for being overrun
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            alive = read_until_closed(connection)
            assert alive.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in alive.lower()
    assert httpx.get(f"{service.url}/v1/labels", timeout=PATIENCE_S).status_code == 200
