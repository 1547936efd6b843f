"""Which pages of other origins may call the service from a browser."""

import re

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?")
_SENT = (
    *("Authorization", "Content-Type", "If-None-Match", "X-API-Key", "X-Request-ID"),
    *("X-Request-Timeout-Ms", "X-Priority", "traceparent"),
)
_READ = ("ETag", "Retry-After", "Server-Timing", "X-Model-Digest", "X-Request-ID")


def parse_origins(text: str) -> tuple[str, ...]:
    """The origins of the setting `cors_origins`.

    An origin is what a browser sends: scheme, host in lower case, port if unusual; no path.

    Raises ValueError.
    """
    origins = tuple(origin.strip() for origin in text.split(",")) if text.strip() else ()
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{origin!r} is no origin; accepted: http(s)://host[:port] without a path, or *"
            )
    return origins


def add_cors(app: FastAPI, origins: tuple[str, ...]) -> None:
    """Lets pages of `origins` call `app`; () changes nothing.

    No cookies or certificates (the service knows neither): a key goes into a header, which the page
    must know.  To be added after the guard of keys, because a browser's preflight brings no key.
    """
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=_SENT,
            expose_headers=_READ,
            max_age=600,
        )
