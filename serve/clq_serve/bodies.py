"""The bytes of a request body, bounded while they arrive and while they are inflated."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.requests import ClientDisconnect, Request

from clq_serve.errors import BadRequest, BodyTooLarge, ClientLeft, UnsupportedEncoding

CODINGS = ("gzip", "deflate", "identity")
_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # "deflate" in HTTP is the zlib format: RFC 9110, 8.4.1
_STEP_BYTES = 2**18


def departure(request: Request) -> Callable[[], Awaitable[bool]]:
    """A function that returns True when the client has left, and waits for that.

    Call it only after the body has been read: it takes what else the client sends.
    """

    async def left() -> bool:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return True

    return left


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, whatever its type, inflated if it was compressed.  Raises as body_chunks."""
    return b"".join([chunk async for chunk in body_chunks(request, max_bytes)])


async def body_chunks(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The chunks of the body, inflated if it was compressed.

    max_bytes  the most that is accepted, both as sent and inflated; known from Content-Length
               before anything is read, otherwise from what arrives

    Raises BodyTooLarge before more than max_bytes are held, UnsupportedEncoding, BadRequest with
    code bad_encoding, or ClientLeft.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in CODINGS:  # this includes several codings on top of each other
        raise UnsupportedEncoding(
            f"Content-Encoding is {coding!r}; accepted: one of {', '.join(CODINGS)}",
            extra={"accepted": list(CODINGS)},
        )
    sent = _sent_chunks(request, max_bytes)
    async for chunk in sent if coding == "identity" else _inflated(sent, coding, max_bytes):
        yield chunk


async def _sent_chunks(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(int(declared), max_bytes)
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_bytes:
                raise _too_large(received, max_bytes)
            yield chunk
    except ClientDisconnect as err:
        raise ClientLeft("the client left while sending the body") from err


async def _inflated(
    sent: AsyncGenerator[bytes, None], coding: str, max_bytes: int
) -> AsyncGenerator[bytes, None]:
    """In small steps, so that a bomb is noticed at its first step over the limit."""
    inflater = zlib.decompressobj(_WINDOW_BITS[coding])
    inflated = 0
    async for chunk in sent:
        rest = chunk
        while rest:
            if inflater.eof:
                raise _bad_encoding(coding, "there are bytes after its end")
            try:
                part = inflater.decompress(rest, _STEP_BYTES)
            except zlib.error as err:
                raise _bad_encoding(coding, str(err)) from err
            rest = inflater.unconsumed_tail or inflater.unused_data
            inflated += len(part)
            if inflated > max_bytes:
                raise _too_large(inflated, max_bytes)
            yield part
            if rest:
                await asyncio.sleep(0)  # other requests get their turn between two steps
    if not inflater.eof:
        raise _bad_encoding(coding, "it ends early")


def _bad_encoding(coding: str, what: str) -> BadRequest:
    return BadRequest(f"the body is not valid {coding}: {what}", code="bad_encoding")


def _too_large(observed: int, limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body has {observed} bytes or more; {limit} are accepted",
        extra={"limit": limit, "observed": observed},
    )
