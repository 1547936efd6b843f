"""POST .../detect and .../detect/batch: from an HTTP request to an HTTP answer."""

import asyncio
import logging
import time

from fastapi import APIRouter, Request
from fastapi.responses import Response

from clq_serve import openapi, problems
from clq_serve.answers import Answered, Wanted, answer_image, call_of, wanted_by
from clq_serve.cache import AnswerCache
from clq_serve.errors import BadRequest, ServeError
from clq_serve.formats import Format, negotiate
from clq_serve.loading import LoadedModel
from clq_serve.parameters import (
    BATCH_OPTIONS,
    OPTIONS,
    parameters_of,
    priority_of,
    query_options,
    timeout_of,
)
from clq_serve.responses import CocoResult, DetectAnswer, FailedItem, ItemAnswer
from clq_serve.routes_info import model_of, service_of
from clq_serve.service import DetectCall, DetectService, Priority, Visit
from clq_serve.uploads import Upload, read_upload

log = logging.getLogger(__name__)
router = APIRouter()

BATCH_AT_ONCE = 8  # images of one request that are inside the service at a time


async def detect(request: Request) -> Response:
    """Detect objects in one image: a form field `image`, JSON with base64, or the raw body."""
    service, model = service_of(request), model_of(request)
    query = query_options(request, OPTIONS)
    parameters = parameters_of(query, {})
    priority = priority_of(request, parameters, Priority.INTERACTIVE)
    async with service.visit(timeout_of(request), priority) as visit:
        upload = await _receive(request, service, visit, 1, OPTIONS)
        if upload.options:
            parameters = parameters_of(query, upload.options)
        wanted = wanted_by(request, parameters, upload.file_names[0])
        call = call_of(request, visit, model, parameters, Priority.INTERACTIVE)
        known = request.headers.get("if-none-match")
        cache = _cache_of(request)
        answered = await answer_image(service, cache, upload.images[0], call, wanted, known)
    headers = _headers(model, answered)
    if answered.encoded is None:
        return Response(status_code=304, headers=headers)
    request.state.detections = answered.encoded.detections
    body = answered.encoded.body(request.state.request_id)
    return Response(body, media_type=answered.encoded.media_type, headers=headers)


async def detect_batch(request: Request) -> Response:
    """Detect objects in several images: a list of answers in their order, a status each."""
    service, model = service_of(request), model_of(request)
    query = query_options(request, BATCH_OPTIONS)
    parameters = parameters_of(query, {})
    priority = priority_of(request, parameters, Priority.BULK)
    rendering = negotiate(request.headers.get("accept"), Format.JSON)
    async with service.visit(timeout_of(request), priority) as visit:
        most = service.settings.max_images_per_request
        upload = await _receive(request, service, visit, most, BATCH_OPTIONS)
        if upload.options:
            parameters = parameters_of(query, upload.options)
        wanted = Wanted(rendering, parameters.box_format, None)
        call = call_of(request, visit, model, parameters, Priority.BULK)
        turns = asyncio.Semaphore(BATCH_AT_ONCE)
        request.state.detections = 0  # what the log will say
        items = await asyncio.gather(
            *(_item(request, turns, i, data, call, wanted) for i, data in enumerate(upload.images))
        )
    headers = {"X-Model-Digest": model.bundle.digest, "Cache-Control": "no-store"}
    return Response(b"[" + b",".join(items) + b"]", media_type="application/json", headers=headers)


for path in openapi.MODEL_PREFIXES:
    router.add_api_route(
        f"{path}/detect",
        detect,
        methods=["POST"],
        response_model=DetectAnswer | list[CocoResult],
        responses=openapi.DETECT_RESPONSES,
        openapi_extra=openapi.operation(path, OPTIONS, many=False),
    )
    router.add_api_route(
        f"{path}/detect/batch",
        detect_batch,
        methods=["POST"],
        response_model=list[ItemAnswer | FailedItem],
        responses=openapi.BATCH_RESPONSES,
        openapi_extra=openapi.operation(path, BATCH_OPTIONS, many=True),
    )


async def _receive(
    request: Request, service: DetectService, visit: Visit, most: int, options: tuple[str, ...]
) -> Upload:
    start = time.perf_counter()
    async with visit.receiving():
        upload = await read_upload(request, service.settings.max_body_bytes, most, options)
    service.metrics.stage("upload", time.perf_counter() - start)
    return upload


async def _item(
    request: Request,
    turns: asyncio.Semaphore,
    index: int,
    data: bytes,
    call: DetectCall,
    wanted: Wanted,
) -> bytes:
    """The answer about one image of several; whatever is wrong with it stays its own affair."""
    try:
        async with turns:
            if not data:
                raise BadRequest("the image is empty", code="empty_body")
            answered = await answer_image(
                service_of(request), _cache_of(request), data, call, wanted
            )
    except ServeError as err:
        problem = problems.serve_problem(request, err)
    except Exception:
        log.exception("request_id=%s: image %d failed", request.state.request_id, index)
        problem = problems.internal_problem(request)
    else:
        assert answered.encoded is not None  # there was no If-None-Match
        request.state.detections += answered.encoded.detections
        return answered.encoded.item(f"{request.state.request_id}-{index}")
    return b'{"ok":false,"problem":' + bytes(problem.body) + b"}"


def _headers(model: LoadedModel, answered: Answered) -> dict[str, str]:
    headers = {
        "X-Model-Digest": model.bundle.digest,
        "ETag": answered.etag,
        "Cache-Control": "no-store",
        "Vary": "Accept",
    }
    if answered.server_timing:
        headers["Server-Timing"] = answered.server_timing
    if answered.cache_status:
        headers["Cache-Status"] = answered.cache_status  # RFC 9211
    return headers


def _cache_of(request: Request) -> AnswerCache:
    cache = request.app.state.cache
    assert isinstance(cache, AnswerCache)
    return cache
