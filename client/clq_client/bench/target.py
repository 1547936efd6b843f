"""Where the load goes: the address of a service, and one connection to it, HTTP/1.1 by hand.

By hand because the generator must be much faster than what it measures: a request is one write of
bytes that were made before the run, and of an answer only what is reported is looked at.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from clq_client.requests import Request

CONNECT_TIMEOUT_S = 5.0


class BadReply(Exception):
    """What came back is no HTTP/1.1 answer."""


class Stale(Exception):
    """The other side had closed a kept connection before a byte of this answer came."""


class Reply(NamedTuple):
    """One answer; server_timing is the header of that name, b"" where there is none."""

    status: int
    server_timing: bytes


@dataclass(frozen=True, slots=True)
class Target:
    """A base URL taken apart; tls is None for http."""

    host: str
    port: int
    prefix: str
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, url: str) -> "Target":
        """The target of a base URL that `clq_client.settings.base_url` has accepted."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        return cls(
            host=parts.hostname or "",
            port=parts.port or (443 if secure else 80),
            prefix=parts.path,
            tls=ssl.create_default_context() if secure else None,
        )

    def request_bytes(self, request: Request, headers: Mapping[str, str]) -> bytes:
        """The request as it goes over the wire.

        headers  beside those that HTTP needs
        """
        query = f"?{urlencode(request.params)}" if request.params else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        body = request.content or b""
        lines = [
            f"{request.method} {self.prefix}{request.path}{query} HTTP/1.1",
            f"Host: {host}:{self.port}",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


class Connection:
    """One kept connection; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._keep = True
        self._answers = 0

    @classmethod
    async def open(cls, target: Target) -> "Connection":
        """Raises OSError (TimeoutError included) if nothing answers within CONNECT_TIMEOUT_S."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return cls(
                *await asyncio.open_connection(target.host, target.port, ssl=target.tls),
            )

    @property
    def usable(self) -> bool:
        """Whether another request can go over it, as far as can be seen."""
        return self._keep and not self._reader.at_eof() and not self._writer.is_closing()

    def close(self) -> None:
        self._keep = False
        self._writer.transport.abort()

    async def exchange(self, request: bytes) -> Reply:
        """Sends a request and reads its whole answer.

        Raises OSError or IncompleteReadError (the connection ended), BadReply, and Stale.
        """
        # No drain: one request is on the way, so that what is buffered is its own size at most.
        self._writer.write(request)
        head = await self._head()
        first, *lines = head[:-4].split(b"\r\n")
        version, _, rest = first.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not rest[:3].isdigit():
            raise BadReply(f"{first[:60]!r} is no HTTP status line")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        await self._skip_body(headers)
        if version == b"HTTP/1.0" or headers.get(b"connection", b"").lower() == b"close":
            self._keep = False
        self._answers += 1
        return Reply(int(rest[:3]), headers.get(b"server-timing", b""))

    async def _head(self) -> bytes:
        try:
            return await self._reader.readuntil(b"\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            if self._answers > 0 and not getattr(error, "partial", b""):
                raise Stale from error
            raise
        except asyncio.LimitOverrunError as error:
            raise BadReply("the answer has more than 64 KiB of headers") from error

    async def _skip_body(self, headers: Mapping[bytes, bytes]) -> None:
        length = headers.get(b"content-length")
        if length is not None and length.isdigit():
            await self._reader.readexactly(int(length))
        elif headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            await self._skip_chunks()
        else:
            await self._reader.read()
            self._keep = False

    async def _skip_chunks(self) -> None:
        while True:
            line = await self._reader.readline()
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError as error:
                raise BadReply(f"{line[:60]!r} is no size of a chunk") from error
            if size == 0:
                break
            await self._reader.readexactly(size + 2)
        while await self._reader.readline() not in (b"\r\n", b""):
            pass  # trailers
