"""Connections to the service: as many as there are calls at once.

One httpx client for all would look at each of its connections, and at each pair of idle ones, for
every request; a call here takes the connection that was used last, whatever their number.
"""

import importlib.util
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import httpx

from clq_client.settings import ClientSettings

# httpcore asks for sniffio, which is optional, several times a request.  Python looks through all
# folders of its path every time a module is missing, unless it is told that it is.
if importlib.util.find_spec("sniffio") is None:
    sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]  # the documented way


class Lines:
    """httpx clients of one connection each; none is opened before it is needed."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._idle: list[httpx.AsyncClient] = []
        self._all: list[httpx.AsyncClient] = []

    @asynccontextmanager
    async def take(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client that nobody else uses meanwhile."""
        if self._idle:
            http = self._idle.pop()
        else:
            http = self._open()
            self._all.append(http)
        try:
            yield http
        finally:
            self._idle.append(http)

    async def close(self) -> None:
        for http in self._all:
            await http.aclose()

    def _open(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            trust_env=False,
            verify=_usual_tls() if self._settings.ca_file is None else self._settings.tls(),
            proxy=self._settings.proxy,
        )


@cache
def _usual_tls() -> ssl.SSLContext:
    """The usual certificates, read once: that takes 30 ms, more than some detections."""
    return httpx.create_ssl_context(trust_env=False)
