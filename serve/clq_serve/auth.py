"""Who may ask what: the scope that a path needs, and the key that a request brings.

Whatever is not listed as open needs a key, so that a new route is closed until somebody opens it.
"""

import math
import re
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from clq_serve import problems
from clq_serve.errors import KeyBusy, KeyOverRate, NoKey, ServeError, WrongScope
from clq_serve.keys import KeyEntry, Keys, Scope
from clq_serve.limits import Limiter

# Probes, and the page, which asks for a key itself and holds nothing secret.
_OPEN = re.compile(
    r"/|/docs|/page/.*|/openapi\.json|/favicon\.ico|/healthz|/readyz|/startupz|/ping|/v2/health/.*"
    r"|/v2/models/[^/]+(/versions/[^/]+)?/ready"
)
_CONTROL = re.compile(r"/v2/repository/models/.*|/v2/logging")
_READ_METRICS = frozenset({Scope.METRICS, Scope.ADMIN})


def public_scopes(path: str) -> frozenset[Scope] | None:
    """The scopes of which one is needed on the public listener; None = open to all."""
    if _OPEN.fullmatch(path):
        return None
    return frozenset({Scope.ADMIN if _CONTROL.fullmatch(path) else Scope.INFER})


def admin_scopes(path: str) -> frozenset[Scope] | None:
    """The scopes of which one is needed on the admin listener; None = open to all."""
    if _OPEN.fullmatch(path):
        return None
    return _READ_METRICS if path == "/metrics" else frozenset({Scope.ADMIN})


class KeyGuard:
    """ASGI middleware that lets a request pass only with a key that may do what it asks.

    Sets `request.state.key` to the name of the key, for the log.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys, scopes_of: Callable[[str], frozenset[Scope] | None]
    ) -> None:
        self._app = app
        self._keys = keys
        self._scopes_of = scopes_of

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        needed = self._scopes_of(scope["path"]) if scope["type"] == "http" else None
        if needed is None:
            await self._app(scope, receive, send)
            return
        try:
            name, entry = self._key_of(Headers(scope=scope), needed)
            scope["state"]["key"] = name
            limiter = self._keys.limiter(name, entry)
            _check_limits(limiter, name)
        except ServeError as err:
            await problems.serve_problem(Request(scope), err)(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(limiter.headers())
            await send(message)

        limiter.inside += 1
        try:
            await self._app(scope, receive, send_with_limits)
        finally:
            limiter.inside -= 1

    def _key_of(self, headers: Headers, needed: frozenset[Scope]) -> tuple[str, KeyEntry]:
        """Raises NoKey or WrongScope."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if not key:
            raise NoKey(
                "send a key: `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                more_headers={"WWW-Authenticate": 'Bearer realm="clq"'},
            )
        found = self._keys.find(key)
        if found is None:
            raise NoKey(
                "the key is unknown",
                code="unknown_key",
                more_headers={"WWW-Authenticate": 'Bearer realm="clq", error="invalid_token"'},
            )
        if not found[1].scopes & needed:
            accepted = sorted(needed)
            raise WrongScope(
                f"the key {found[0]!r} has the scopes {', '.join(sorted(found[1].scopes))}; "
                f"needed: {' or '.join(accepted)}",
                extra={"accepted": [str(scope) for scope in accepted]},
            )
        return found


def _check_limits(limiter: Limiter, name: str) -> None:
    if limiter.full:
        limit = limiter.limits.concurrent or 0
        raise KeyBusy(
            f"{limiter.inside} requests with the key {name!r} are inside already",
            extra={"limit": limit, "observed": limiter.inside + 1, "retry_after": 1},
        )
    wait_s = limiter.wait_s()
    if wait_s > 0:
        raise KeyOverRate(
            f"the key {name!r} may make {limiter.limits.requests_per_s:g} requests a second",
            extra={
                "limit": limiter.limits.requests_per_s or 0.0,
                "retry_after": math.ceil(wait_s),
            },
            more_headers=limiter.headers(),
        )
