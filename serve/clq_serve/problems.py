"""Every error as an application/problem+json answer (RFC 9457); never a traceback, never a path."""

import http
import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from clq_serve.errors import BadParameter, Extra, ServeError

MEDIA_TYPE = "application/problem+json"
_REFERENCE = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_CODES_OF_STATUS = {404: "not_found", 405: "method_not_allowed"}


def documented(described: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that may answer these problems: status -> when."""
    return {s: {"description": when, "content": _REFERENCE} for s, when in described.items()}


def problem_response(
    request: Request,
    *,
    status: int,
    code: str,
    title: str,
    detail: str,
    extra: Mapping[str, Extra] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """One problem answer, counted; `extra` holds its further members."""
    request.app.state.service.metrics.refused(code)
    body: dict[str, Extra] = {
        "type": f"/docs#{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
        "code": code,
        "request_id": request.state.request_id,
        **(extra or {}),
    }
    all_headers = {"Cache-Control": "no-store", **(headers or {})}
    if "retry_after" in body:
        all_headers["Retry-After"] = str(body["retry_after"])
    if request.url.path.startswith("/v2"):  # what clients of that protocol read
        return Response(_text({"error": detail, **body}), status, all_headers, "application/json")
    return Response(_text(body), status, all_headers, MEDIA_TYPE)


def _text(body: Mapping[str, Extra]) -> bytes:
    """As JSON.  A stranger's word may hold half a surrogate pair, which UTF-8 has no bytes for."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def serve_problem(request: Request, err: ServeError) -> Response:
    """The answer to a request, or about one of its images, that ended with `err`."""
    return problem_response(
        request,
        status=err.status,
        code=err.code,
        title=err.title,
        detail=err.detail,
        extra=err.extra,
        headers={**err.headers, **err.more_headers},
    )


def internal_problem(request: Request) -> Response:
    """The answer to a request that hit a bug; the log has the traceback under its id."""
    detail = "the service failed on this request; its log says why under this request_id"
    return serve_problem(request, ServeError(detail))


def install(app: FastAPI) -> None:
    """Make `app` answer all its errors, the framework's included, as problems."""
    app.add_exception_handler(ServeError, _serve_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


async def _serve_error(request: Request, err: Exception) -> Response:
    assert isinstance(err, ServeError)
    return serve_problem(request, err)


async def _validation_error(request: Request, err: Exception) -> Response:
    """A query parameter that the framework refused: its name, its value, what is accepted."""
    assert isinstance(err, RequestValidationError)
    first = err.errors()[0]
    name = str(first["loc"][-1])
    detail = f"{name}={first['input']}: {first['msg']}"
    return serve_problem(request, BadParameter(detail, extra={"parameter": name}))


async def _http_error(request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    phrase = http.HTTPStatus(err.status_code).phrase
    return problem_response(
        request,
        status=err.status_code,
        code=_CODES_OF_STATUS.get(err.status_code, phrase.lower().replace(" ", "_")),
        title=phrase,
        detail=f"{request.method} {request.url.path}: {phrase.lower()}; see /docs",
        headers=err.headers,
    )
