"""Which bytes of a request are the image: a multipart field, or the raw body."""

from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.requests import ClientDisconnect, Request

from clq_serve.errors import BadRequest, BodyTooLarge, ClientLeft, WrongContentType
from clq_serve.forms import Part, read_form

FIELDS = ("image", "file")
ACCEPTED_TYPES = ("multipart/form-data", "image/*", "application/octet-stream")


async def read_image(request: Request, max_bytes: int) -> bytes:
    """The bytes of the uploaded image, never empty.

    Raises WrongContentType, BodyTooLarge (as soon as that is known), BadRequest (no image, more
    than one, an unknown form field, a malformed form) or ClientLeft.
    """
    declared = request.headers.get("content-type", "")
    media_type = declared.partition(";")[0].strip().lower()
    is_form = media_type == "multipart/form-data"
    if not is_form and not media_type.startswith("image/") and media_type != ACCEPTED_TYPES[2]:
        raise WrongContentType(
            f"Content-Type is {media_type or 'missing'}; accepted: {', '.join(ACCEPTED_TYPES)}",
            extra={"accepted": list(ACCEPTED_TYPES)},
        )
    body = _capped(request, max_bytes)
    try:
        if is_form:
            data = _only_image(await read_form(declared, body))
        else:
            data = b"".join([chunk async for chunk in body])
    except ClientDisconnect as err:
        raise ClientLeft("the client left while sending the image") from err
    if not data:
        raise BadRequest("the image is empty; send the bytes of an image file", code="empty_body")
    return data


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
    """The whole body, whatever its type.  Raises BodyTooLarge or ClientLeft."""
    try:
        return b"".join([chunk async for chunk in _capped(request, max_bytes)])
    except ClientDisconnect as err:
        raise ClientLeft("the client left while sending the body") from err


async def _capped(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The chunks of the body; raises BodyTooLarge before more than max_bytes are held."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(int(declared), max_bytes)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(received, max_bytes)
        yield chunk


def _too_large(observed: int, limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body has {observed} bytes or more; {limit} are accepted",
        extra={"limit": limit, "observed": observed},
    )


def _only_image(parts: list[Part]) -> bytes:
    unknown = sorted({part.name for part in parts if part.name not in FIELDS})
    if unknown:
        raise BadRequest(
            f"unknown form field {unknown[0]!r}; accepted: one of {', '.join(FIELDS)}; options go "
            "into the query string",
            code="unknown_field",
            extra={"accepted": list(FIELDS)},
        )
    if not parts:
        raise BadRequest(
            f"the form has no image; send one file as one of {', '.join(FIELDS)}",
            code="missing_image",
            extra={"accepted": list(FIELDS)},
        )
    if len(parts) > 1:
        raise BadRequest(f"the form has {len(parts)} images; send one", code="several_images")
    if not parts[0].is_file:
        raise BadRequest(
            f"the form field {parts[0].name!r} is text; send a file (curl: -F image=@FILE)",
            code="missing_image",
        )
    return bytes(parts[0].data)
