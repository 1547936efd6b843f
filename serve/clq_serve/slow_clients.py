"""Connections that send, or read, too slowly are cut off below HTTP; no middleware can see them.

uvicorn alone keeps an idle connection, a half-sent header and a half-sent body open without end.
Nothing here is timed per request: each connection keeps a few numbers, and one task looks at all
connections a few times a second.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from clq_serve.request_log import PROBES
from clq_serve.service import DetectService

MAX_PIPELINED = 16  # requests that wait on one connection for the answer before theirs
LAST_REQUEST_S = 0.5  # how long a connection may still begin a request after the listener is closed
OVERFLOW = 1.1  # connections are told "503" up to this many times max_connections, then just closed


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a client may do.

    header_timeout_s  from the connection, or from the first byte, until the headers are complete
    stall_timeout_s   how far a body, or the reading of an answer, may be behind min_bytes_per_s
    """

    header_timeout_s: float
    stall_timeout_s: float
    min_bytes_per_s: float
    max_header_bytes: int
    max_connections: int

    @property
    def interval_s(self) -> float:
        """How often connections have to be looked at."""
        return min(0.5, self.header_timeout_s / 4, self.stall_timeout_s / 4)


class GuardedConnection(HttpToolsProtocol):
    """uvicorn's protocol that keeps count of how patient the service is with its client."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
        service: Callable[[], DetectService],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._service = service()
        self._metrics = self._service.metrics
        self._header_began_s: float | None = None  # None: headers complete, or keep-alive
        self._body_pending = False
        self._without_body = 0  # bytes since the last byte of a body
        self._body_seen = False
        self._received = 0  # bytes since the last look
        self._body_behind_s = 0.0
        self._unread = 0  # bytes of the answer that the client had not taken at the last look
        self._reading_behind_s = 0.0

    @property
    def answering(self) -> bool:
        """Whether a request is inside that has not been answered."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        # A client has its whole answer, and may act on it, before uvicorn calls it complete. False,
        # not None: only then is the length that is left to send known.
        return not (cycle.chunked_encoding is False and cycle.expected_content_length == 0)

    # 1. called by the event loop and the parser

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._metrics.connection_opened()
        self._header_began_s = self.loop.time()
        others = len(self.connections) - 1
        if others >= OVERFLOW * self._limits.max_connections:
            self._cut_off("too_many_connections")
        elif others >= self._limits.max_connections:
            self._metrics.connection_cut_off("too_many_connections")
            self.app = self._refuse

    def connection_lost(self, exc: Exception | None) -> None:
        self._metrics.connection_closed()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        self._body_seen = False
        super().data_received(data)
        self._without_body = 0 if self._body_seen else self._without_body + len(data)
        if self._without_body > self._limits.max_header_bytes and not self.transport.is_closing():
            self._answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_began_s = self.loop.time()
        self._without_body = 0

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._cut_off("too_many_pipelined")
            raise httptools.HttpParserError("too many pipelined requests")  # ends this chunk
        super().on_headers_complete()
        if self._service.draining:
            self.cycle.keep_alive = False  # so that the client goes elsewhere for its next request
        self._header_began_s = None
        self._body_pending = True
        self._received = 0
        self._body_behind_s = 0.0

    def on_body(self, body: bytes) -> None:
        self._body_seen = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._body_pending = False
        super().on_message_complete()

    def resume_writing(self) -> None:
        self._reading_behind_s = 0.0  # the client has just taken most of what waited for it
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            self._answer(HTTPStatus.BAD_REQUEST, "bad_http")

    def shutdown(self) -> None:
        """The listener is closed.  A request may be on its way on a connection without one."""
        if self.answering:
            super().shutdown()
        else:
            self.loop.call_later(LAST_REQUEST_S, super().shutdown)

    # 2. called every interval_s

    def look(self, now_s: float, elapsed_s: float) -> None:
        """Ends the connection if its client is too slow; elapsed_s: since the last look."""
        self._look_at_reading(elapsed_s)
        if self.flow.read_paused or self.transport.is_closing():
            return  # it is us who do not read
        if self._header_began_s is not None:
            if self.answering:
                self._header_began_s = now_s  # the next request has time until this one is answered
            elif now_s - self._header_began_s > self._limits.header_timeout_s:
                self._cut_off("slow_headers")
        elif self._body_pending:
            self._look_at_body(elapsed_s)

    def _look_at_body(self, elapsed_s: float) -> None:
        if self.cycle.waiting_for_100_continue and self.answering:
            return  # the client waits for our word
        in_time_s = self._received / self._limits.min_bytes_per_s
        self._received = 0
        self._body_behind_s = max(0.0, self._body_behind_s + elapsed_s - in_time_s)
        if self._body_behind_s <= self._limits.stall_timeout_s:
            return
        if self.answering and not self.cycle.response_started:
            self._answer(HTTPStatus.REQUEST_TIMEOUT, "upload_timeout", reason="slow_body")
        else:
            self._cut_off("slow_body")

    def _look_at_reading(self, elapsed_s: float) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread:
            in_time_s = max(0, self._unread - unread) / self._limits.min_bytes_per_s
            self._reading_behind_s = max(0.0, self._reading_behind_s + elapsed_s - in_time_s)
            if self._reading_behind_s > self._limits.stall_timeout_s:
                self._cut_off("slow_reader")
        else:
            self._reading_behind_s = 0.0
        self._unread = unread

    # 3. how it ends

    def _cut_off(self, reason: str) -> None:
        self._metrics.connection_cut_off(reason)
        self.transport.abort()

    def _answer(self, status: HTTPStatus, code: str, reason: str = "") -> None:
        """Writes a problem past the application, and closes."""
        self._metrics.connection_cut_off(reason or code)
        state = self.scope["state"] if self.scope else {}
        state["cut_off_status"] = int(status)  # for the log: the application sees a client leave
        path = self.scope.get("path", "") if self.scope else ""
        body = _problem(status, code, path, str(state.get("request_id", "")))
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in _headers(body).items())
        self.transport.write(f"{head}\r\n".encode() + body)
        self.transport.close()

    async def _refuse(self, scope: Any, receive: Any, send: Any) -> None:
        """The application of a connection that is one too many; probes are answered all the same,
        or an orchestrator would restart what is only overrun.
        """
        if scope["path"] in PROBES:
            self.cycle.keep_alive = False
            await self.config.loaded_app(scope, receive, send)
            return
        code, status = "too_many_connections", HTTPStatus.SERVICE_UNAVAILABLE
        body = _problem(status, code, scope["path"], "")
        headers = [
            (name.encode(), value.encode())
            for name, value in {**_headers(body), "retry-after": "1"}.items()
        ]
        await send({"type": "http.response.start", "status": int(status), "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def look_at_all(connections: Iterable[object], limits: ConnectionLimits) -> None:
    """Never returns; `connections` is uvicorn's own set, which changes meanwhile."""
    loop = asyncio.get_running_loop()
    before_s = loop.time()
    while True:
        await asyncio.sleep(limits.interval_s)
        now_s = loop.time()
        # After a pause of our own, what clients sent meanwhile has not been received yet.
        elapsed_s = min(now_s - before_s, 2 * limits.interval_s)
        before_s = now_s
        for connection in list(connections):
            assert isinstance(connection, GuardedConnection)
            connection.look(now_s, elapsed_s)


# Detail of each problem that is answered here, by its code.
DETAILS = {
    "bad_http": "this is not an HTTP/1.1 request",
    "headers_too_large": "the headers, or what is around the body, have too many bytes",
    "upload_timeout": "the body arrives too slowly",
    "too_many_connections": "the service has too many open connections; try again later",
}


def _headers(body: bytes) -> dict[str, str]:
    return {
        "content-type": "application/problem+json",
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "connection": "close",
    }


def _problem(status: HTTPStatus, code: str, path: str, request_id: str) -> bytes:
    problem = {
        "type": f"/docs#{code}",
        "title": status.phrase,
        "status": int(status),
        "detail": DETAILS[code],
        "instance": path,
        "code": code,
        "request_id": request_id,
    }
    return json.dumps(problem, separators=(",", ":")).encode()
