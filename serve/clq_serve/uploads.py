"""The images of a request and the options beside them: a form, JSON, or the raw body."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from clq_serve.bodies import body_chunks
from clq_serve.errors import BadRequest, WrongContentType
from clq_serve.forms import Part, read_form
from clq_serve.json_bodies import parse_json_body

FIELDS = ("image", "file", "images", "files")
ACCEPTED_TYPES = ("multipart/form-data", "application/json", "image/*", "application/octet-stream")

_MAX_OPTION_BYTES = 10_000
_THREAD_FROM_BYTES = 100_000  # a JSON body larger than this is parsed beside the event loop


@dataclass(frozen=True, slots=True)
class Upload:
    """What a body holds: at least one image; file_names of a form, "" where there is none."""

    images: list[bytes]
    file_names: list[str]
    options: dict[str, str] = field(default_factory=dict)


async def read_upload(
    request: Request,
    max_bytes: int,
    max_images: int,
    options: Sequence[str],
    fields: Sequence[str] = FIELDS,
) -> Upload:
    """The upload in the body of `request`.

    options  names of the form fields or JSON members that are accepted besides the images
    fields   names of the form fields that are images

    Raises WrongContentType, UnsupportedEncoding, BodyTooLarge (as soon as that is known),
    BadRequest (no image, too many, an unknown field, a malformed body) or ClientLeft.
    """
    declared = request.headers.get("content-type", "")
    media_type = declared.partition(";")[0].strip().lower()
    body = body_chunks(request, max_bytes)
    if media_type == "multipart/form-data":
        parts = await read_form(declared, body, max_images + len(options))
        upload = _of_form(parts, options, fields)
    elif media_type == "application/json":
        data = b"".join([chunk async for chunk in body])
        if len(data) < _THREAD_FROM_BYTES:
            images, given = parse_json_body(data, options)
        else:
            images, given = await asyncio.to_thread(parse_json_body, data, options)
        upload = Upload(images, [""] * len(images), given)
    elif media_type.startswith("image/") or media_type == "application/octet-stream":
        upload = Upload([b"".join([chunk async for chunk in body])], [""])
    else:
        raise WrongContentType(
            f"Content-Type is {media_type[:80] or 'missing'}; accepted: "
            + ", ".join(ACCEPTED_TYPES),
            extra={"accepted": list(ACCEPTED_TYPES)},
        )
    return _checked(upload, max_images)


def _checked(upload: Upload, max_images: int) -> Upload:
    count = len(upload.images)
    if count == 0:
        raise BadRequest("the list of images is empty; send at least one", code="missing_image")
    if count > max_images:
        where = "; send several to /v1/detect/batch" if max_images == 1 else ""
        raise BadRequest(
            f"the body has {count} images; {max_images} accepted{where}",
            code="several_images" if max_images == 1 else "too_many_images",
            extra={"limit": max_images, "observed": count},
        )
    if max_images == 1 and not upload.images[0]:
        raise BadRequest("the image is empty; send the bytes of an image file", code="empty_body")
    return upload


def _of_form(parts: list[Part], options: Sequence[str], image_fields: Sequence[str]) -> Upload:
    images: list[Part] = []
    fields: dict[str, str] = {}
    for part in parts:
        if part.name in image_fields:
            if part.file_name is None:
                raise BadRequest(
                    f"the form field {part.name!r} is text; send a file (curl: -F image=@FILE)",
                    code="missing_image",
                )
            images.append(part)
        elif part.name not in options:
            accepted = [*image_fields, *options]
            raise BadRequest(
                f"unknown form field {part.name[:80]!r}; accepted: {', '.join(accepted)}",
                code="unknown_field",
                extra={"accepted": accepted},
            )
        elif part.name in fields or len(part.data) > _MAX_OPTION_BYTES:
            raise BadRequest(
                f"the form field {part.name!r} is given twice or is too long", code="bad_form"
            )
        else:
            fields[part.name] = part.data.decode("utf-8", "replace")
    if not images:
        raise BadRequest(
            f"the form has no image; send one file as one of {', '.join(image_fields)}",
            code="missing_image",
            extra={"accepted": list(image_fields)},
        )
    names = [part.file_name or "" for part in images]
    return Upload([bytes(part.data) for part in images], names, fields)
