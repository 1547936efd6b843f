"""The loops and connections of the load tester, against servers that do what is to be measured."""

import asyncio
import contextlib
import threading

import pytest

from clq_client.bench.arrivals import constant
from clq_client.bench.ceiling import ceiling
from clq_client.bench.figures import Window, figures_of
from clq_client.bench.loops import Load, closed_loop, open_loop
from clq_client.bench.target import Target
from clq_client.requests import Request

OK = b"HTTP/1.1 200 OK\r\nServer-Timing: total;dur=1.5\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """A server in a thread of its own; `answer(number, writer)` is called for each request.

    Requests have no body; they are numbered from 0 in the order in which they come.
    """

    def __init__(self, answer):
        self._answer = answer
        self._started = threading.Event()
        self.requests = 0
        self.heads = []
        self.connections = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self):
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _serve(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        ends = {}  # the task that answers a connection: its writer

        def connected(reader, writer):
            self.connections += 1
            ends[self._loop.create_task(self._connection(reader, writer))] = writer

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/prefix"
        self._started.set()
        await self._stop.wait()
        # Closing would break what is being accepted at this moment, and leave its socket open.
        while accepting := asyncio.all_tasks() - {asyncio.current_task(), *ends}:
            await asyncio.wait(accepting)
        server.close()
        for writer in ends.values():
            writer.transport.abort()

    async def _connection(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                number, self.requests = self.requests, self.requests + 1
                await self._answer(number, writer)

    def load(self, connections=64, timeout_s=30.0):
        target = Target.of(self.url)
        request = target.request_bytes(Request("GET", "/x", (("a", "b c"),)), {"Key": "value"})
        return Load(target, [request], connections, timeout_s)


def answering(data):
    async def answer(number, writer):
        writer.write(data)

    return answer


def stalls_once(at_request):
    """Answers at once, but after `at_request` requests nobody is answered for one second."""
    blocked_until_s = 0.0

    async def answer(number, writer):
        nonlocal blocked_until_s
        loop = asyncio.get_running_loop()
        if number == at_request:
            blocked_until_s = loop.time() + 1.0
        await asyncio.sleep(blocked_until_s - loop.time())
        writer.write(OK)

    return answer


@pytest.mark.slow
def test_a_closed_loop_hides_a_stall_of_one_second_and_the_open_loop_shows_it():
    """Coordinated omission: a user who waits does not send what would have waited, too."""
    with Server(stalls_once(150)) as server:
        closed = asyncio.run(closed_loop(server.load(connections=1), 2.5))
    with Server(stalls_once(150)) as server:
        opened = asyncio.run(open_loop(server.load(), constant(100, 3.0)))
    closed_ms = figures_of(closed, Window(0, 3)).latency_ms
    opened_ms = figures_of(opened, Window(0, 3)).latency_ms
    assert closed_ms["max"] > 950  # the one request that met it
    assert closed_ms["p99"] < 500
    assert len(opened) == 300
    assert opened_ms["p99"] > 900
    assert opened_ms["p90"] > 500  # of 3 s of arrivals, those of the first half of the stall


def test_latency_counts_the_wait_for_a_connection():
    with Server(stalls_once(0)) as server:
        samples = asyncio.run(open_loop(server.load(connections=1), [0.0, 0.01, 0.02]))
    assert server.connections == 1
    assert [s.status for s in samples] == [200, 200, 200]
    assert all(s.ended_s - s.due_s > 0.9 for s in samples)
    assert [s.sent_s - s.due_s > 0.9 for s in samples] == [False, True, True]


def test_a_request_goes_over_the_wire_as_http_says():
    with Server(answering(OK)) as server:
        (sample,) = asyncio.run(open_loop(server.load(), [0.0]))
    assert (sample.status, sample.server_timing) == (200, b"total;dur=1.5")
    first, *lines = server.heads[0].decode().split("\r\n")
    assert first == "GET /prefix/x?a=b+c HTTP/1.1"
    assert f"Host: {server.url.split('/')[2]}" in lines
    assert "Key: value" in lines
    assert "Content-Length: 0" in lines


@pytest.mark.parametrize(
    "data",
    [
        OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nT: t\r\n\r\n",
        b"HTTP/1.1 200 \r\ncontent-length:0\r\n\r\n",
    ],
)
def test_connections_are_kept_whatever_the_form_of_the_body(data):
    with Server(answering(data)) as server:
        samples = asyncio.run(open_loop(server.load(connections=1), [0, 0, 0]))
    assert [s.status for s in samples] == [200] * 3
    assert server.connections == 1


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.0 503 Busy\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 503 Busy\r\n\r\nuntil the end",
    ],
)
def test_a_connection_that_the_server_gives_up_is_not_used_again(data):
    async def answer(number, writer):
        writer.write(data)
        writer.close()

    with Server(answer) as server:
        samples = asyncio.run(open_loop(server.load(connections=1), [0, 0, 0]))
    assert [s.status for s in samples] == [503] * 3
    assert (server.connections, server.requests) == (3, 3)


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        (b"", "connection cut"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "connection cut"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "connection cut"),
        (b"SSH-2.0-server\r\n\r\n", "no HTTP answer: b'SSH-2.0-server' is no HTTP status line"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            "no HTTP answer: b'x\\r\\n' is no size of a chunk",
        ),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, "no HTTP answer: the answer has more"),
    ],
)
def test_an_answer_that_is_none_is_a_failure_with_its_reason(data, failure):
    async def answer(number, writer):
        writer.write(data)
        writer.close()

    with Server(answer) as server:
        (sample,) = asyncio.run(open_loop(server.load(), [0]))
    assert sample.status == 0
    assert sample.failure.startswith(failure)


def test_a_request_over_a_connection_that_the_server_had_closed_is_sent_again_and_counted():
    async def answer(number, writer):
        if number in (0, 2):
            writer.write(OK)
        else:  # the second request of each connection: as if it had been closed just before
            writer.close()

    with Server(answer) as server:
        samples = asyncio.run(open_loop(server.load(connections=1), [0, 0]))
    assert [(s.status, s.resent) for s in samples] == [(200, False), (200, True)]
    assert figures_of(samples, Window(-1, 99)).resent == 1


def test_a_request_that_takes_too_long_is_a_timeout_also_while_it_waits_to_be_sent():
    async def never(number, writer):
        await asyncio.sleep(60)

    with Server(never) as server:
        load = server.load(connections=1, timeout_s=0.2)
        samples = asyncio.run(open_loop(load, [0, 0]))
    assert [s.failure for s in samples] == ["timeout", "timeout"]


def test_a_server_that_is_not_there_is_a_failure_of_each_request():
    with Server(answering(OK)) as server:
        load = server.load(connections=2)
    samples = asyncio.run(closed_loop(load, 0.2))
    assert 2 <= len(samples) <= 12  # not a hot loop
    assert {s.failure for s in samples} == {"connection refused"}


def test_a_closed_loop_has_as_many_requests_on_the_way_as_it_has_users():
    most = on_the_way = 0

    async def answer(number, writer):
        nonlocal most, on_the_way
        on_the_way += 1
        most = max(most, on_the_way)
        await asyncio.sleep(0.01)
        on_the_way -= 1
        writer.write(OK)

    with Server(answer) as server:
        samples = asyncio.run(closed_loop(server.load(connections=3), 0.5))
    assert most == server.connections == 3
    assert len(samples) == server.requests


def test_the_ceiling_is_measured_with_the_bodies_of_the_run():
    target = Target.of("http://other.example")
    bodies = [
        target.request_bytes(Request("POST", "/v1/detect", content=size * b"x"), {})
        for size in (1, 300_000)
    ]
    assert asyncio.run(ceiling(bodies, 4)) > 20
