"""The pages for people: `/` to try an image, `/docs` to look things up, and the files they load."""

import hashlib
import importlib.resources
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
_HEADERS = {
    # Their own files, images in memory, requests to the same origin; nothing from elsewhere,
    # nothing inline, and no string becomes markup or script.
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ]
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # may be kept, is asked for again with its ETag
}


class _File:
    """One file of the package, read once, and its ETag."""

    def __init__(self, source: Traversable) -> None:
        self.content = source.read_bytes()
        self.media_type = MEDIA_TYPES[source.name[source.name.rindex(".") :]]
        self.etag = f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


_PACKAGE = importlib.resources.files("clq_serve")
_REFERENCE = _File(_PACKAGE.joinpath("docs.html"))
_FILES = {source.name: _File(source) for source in _PACKAGE.joinpath("page").iterdir()}


@router.api_route("/", methods=["GET", "HEAD"])
async def try_it(request: Request) -> Response:
    """The page that shows what the model finds in an image."""
    return _answer(request, _FILES["index.html"])


@router.api_route("/docs", methods=["GET", "HEAD"])
async def docs(request: Request) -> Response:
    """The reference: routes, parameters, problem codes."""
    return _answer(request, _REFERENCE)


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def file(request: Request, name: str) -> Response:
    """A script, a style sheet or an image of the two pages."""
    if name not in _FILES or name.endswith(".html"):
        raise HTTPException(404)
    return _answer(request, _FILES[name])


def _answer(request: Request, found: _File) -> Response:
    headers = _HEADERS | {"ETag": found.etag}
    if found.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers=headers, media_type=found.media_type)
