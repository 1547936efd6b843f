"""Around every request: its id, its line in the log, counts, span, and an answer to bugs."""

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clq_serve.errors import ServeError
from clq_serve.problems import internal_problem
from clq_serve.telemetry import Telemetry

log = logging.getLogger(__name__)

# Asked every few seconds: their lines would bury the others.
PROBES = frozenset(
    {"/healthz", "/readyz", "/startupz", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready"}
)
_USABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_STAGE = re.compile(r"([a-z_]+);dur=([0-9.]+)")


class RequestLog:
    """ASGI middleware.  Sets `request.state.request_id`, from X-Request-ID if that is usable."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry | None = None) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, receive, send, self._telemetry)
        metrics = scope["app"].state.service.metrics
        metrics.request_began()
        try:
            await self._app(scope, visit.receive, visit.send)
        except Exception:  # the edge of the process: whatever it was, the client gets an answer
            log.exception("request_id=%s failed", visit.request_id)
            if visit.status:
                raise  # the answer has begun; the server closes the connection
            await internal_problem(Request(scope))(scope, visit.receive, visit.send)
        finally:
            seconds = time.perf_counter() - visit.began
            metrics.request_ended(visit.route, visit.final_status, seconds)
            visit.log(seconds)
            if self._telemetry is not None:
                self._telemetry.end(
                    visit.span, visit.method, visit.route, visit.final_status, visit.stages_ms()
                )


class _Visit:
    """What is noted of one request on its way in and out."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, telemetry: Telemetry | None
    ) -> None:
        self.began = time.perf_counter()
        self.status = 0
        self.method: str = scope["method"]
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.request_id = given if _USABLE_ID.fullmatch(given) else uuid.uuid4().hex
        self._scope = scope
        self._receive = receive
        self._send = send
        self._bytes_in = self._bytes_out = 0
        self._server_timing = ""
        self._model_digest: str | None = None
        self._state: dict[str, Any] = scope.setdefault("state", {})
        self._state["request_id"] = self.request_id
        self._traceparent = headers.get("traceparent", "")
        if not _TRACEPARENT.fullmatch(self._traceparent):
            self._traceparent = ""
        self.span = None
        if telemetry is not None:
            self.span, self._traceparent = telemetry.begin(
                self._traceparent, headers.get("tracestate", "")
            )

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes_in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.request_id
            headers["X-Content-Type-Options"] = "nosniff"
            if self._traceparent:
                headers["traceparent"] = self._traceparent
            self._server_timing = headers.get("server-timing", "")
            self._model_digest = headers.get("x-model-digest")
        else:
            self._bytes_out += len(message.get("body", b""))
        await self._send(message)

    @property
    def route(self) -> str:
        """The template of the route, e.g. /v1/models/{name}; never a stranger's own words."""
        return str(getattr(self._scope.get("route"), "path", "none"))

    @property
    def final_status(self) -> int:
        """What the client was told; 499 if it had left, 500 if the answer never began."""
        return int(self._state.get("cut_off_status", self.status or ServeError.status))

    def stages_ms(self) -> dict[str, float]:
        """Where the time went, from the Server-Timing header of the answer."""
        return {name: float(ms) for name, ms in _STAGE.findall(self._server_timing)}

    def log(self, seconds: float) -> None:
        level = logging.DEBUG if self._scope["path"] in PROBES else logging.INFO
        if not log.isEnabledFor(level):
            return
        client = self._scope.get("client")
        fields = {
            "request_id": self.request_id,
            "trace_id": self._traceparent[3:35] or None,
            "client": client[0] if client else None,
            "key": self._state.get("key"),
            "method": self.method,
            "path": self._scope["path"],
            "route": self.route,
            "status": self.final_status,
            "bytes_in": self._bytes_in,
            "bytes_out": self._bytes_out,
            "ms": round(1e3 * seconds, 3),
            "stages_ms": self.stages_ms() or None,
            "detections": self._state.get("detections"),
            "model": self._model_digest,
        }
        log.log(level, "request", extra={"fields": fields})
