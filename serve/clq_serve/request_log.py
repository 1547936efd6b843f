"""Around every request: its id, one line in the log, and an answer even when there is a bug."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clq_serve.errors import ServeError
from clq_serve.problems import internal_problem

log = logging.getLogger(__name__)

# Asked every few seconds: their lines would bury the others.
PROBES = ("/healthz", "/readyz", "/startupz", "/metrics")
_USABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestLog:
    """ASGI middleware.  Sets `request.state.request_id`, from X-Request-ID if that is usable."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _USABLE_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        metrics = scope["app"].state.service.metrics
        metrics.request_began()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # the edge of the process: whatever it was, the client gets an answer
            log.exception("request_id=%s failed", request_id)
            if status:
                raise  # the answer has begun; the server closes the connection
            await internal_problem(Request(scope))(scope, receive, send_with_id)
        finally:
            metrics.request_ended(_template(scope), status or ServeError.status)
        log.log(
            logging.DEBUG if scope["path"] in PROBES else logging.INFO,
            "request_id=%s %s %s status=%d detections=%s ms=%.1f",
            request_id,
            scope["method"],
            scope["path"],
            status,
            state.get("detections", "-"),
            1e3 * (time.perf_counter() - start),
        )


def _template(scope: Scope) -> str:
    """The path of the route that answered, e.g. /v1/models/{name}; never a stranger's own words."""
    return str(getattr(scope.get("route"), "path", "none"))
