"""The routes of two older services, thin: their requests, their answers, this detector.

TorchServe:  POST or PUT /predictions/NAME[/VERSION] with the image as the body (`curl -T`) or as
             the form field `data`; GET /ping.  The answer is that of its object_detector handler.
DeepStack:   POST /v1/vision/detection with the form fields `image` and `min_confidence`.

What only configures those servers themselves is not here.  Errors are problems, as everywhere; for
DeepStack they have the members `success` and `error` besides, which its clients look at.
"""

import itertools
import json
import time

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError

from clq_serve import openapi
from clq_serve.answers import call_of
from clq_serve.bodies import body_chunks
from clq_serve.errors import BadParameter, BadRequest, ServeError
from clq_serve.loading import LoadedModel
from clq_serve.parameters import DetectParameters, query_options, timeout_of
from clq_serve.responses import DeepStackAnswer, StatusAnswer
from clq_serve.routes_info import model_of, service_of
from clq_serve.service import Outcome, Priority
from clq_serve.uploads import Upload, read_upload

router = APIRouter()


@router.get("/ping")
async def ping() -> StatusAnswer:
    """TorchServe's probe: whether the process answers at all."""
    return StatusAnswer(status="Healthy")


async def predictions(request: Request) -> Response:
    """TorchServe's inference: a list of {CLASS: [x1, y1, x2, y2], "score": ...}, best first."""
    query_options(request, ())
    service, model = service_of(request), model_of(request)
    async with service.visit(timeout_of(request)) as visit:
        async with visit.receiving():
            data = await _torchserve_image(request, service.settings.max_body_bytes)
        call = call_of(request, visit, model, DetectParameters(), Priority.INTERACTIVE)
        outcome = await service.detect(data, call)
    names = model.bundle.manifest.class_names
    rows = [
        {names[label]: [round(side, 3) for side in box], "score": round(score, 6)}
        for label, box, score in _detections(outcome)
    ]
    return _answer(request, model, rows, len(rows))


@router.post(
    "/v1/vision/detection",
    response_model=DeepStackAnswer,
    responses=openapi.COMPAT_RESPONSES,
    openapi_extra=openapi.deepstack_operation(),
)
async def deepstack(request: Request) -> Response:
    """DeepStack's object detection, by the default model."""
    started = time.perf_counter()
    try:
        model, outcome = await _deepstack_outcome(request)
    except ServeError as err:
        err.extra = {"success": False, "error": err.detail, **err.extra}
        raise
    names = model.bundle.manifest.class_names
    predictions = [
        {
            "label": names[label],
            "confidence": round(score, 6),
            "x_min": round(x1),
            "y_min": round(y1),
            "x_max": round(x2),
            "y_max": round(y2),
        }
        for label, (x1, y1, x2, y2), score in _detections(outcome)
    ]
    duration_s = round(time.perf_counter() - started, 6)
    tree = {"success": True, "predictions": predictions, "duration": duration_s}
    return _answer(request, model, tree, len(predictions))


for path, method in itertools.product(
    ("/predictions/{name}", "/predictions/{name}/{version}"), ("POST", "PUT")
):
    router.add_api_route(
        path,
        predictions,
        methods=[method],
        responses=openapi.COMPAT_RESPONSES,
        response_model=list[dict[str, list[float] | float]],
        openapi_extra=openapi.torchserve_operation(path),
    )


async def _torchserve_image(request: Request, max_bytes: int) -> bytes:
    """A form's field `data`, or the body whatever its type: `curl -T` sends none."""
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return (await read_upload(request, max_bytes, 1, (), ("data", "body"))).images[0]
    data = b"".join([chunk async for chunk in body_chunks(request, max_bytes)])
    if not data:
        raise BadRequest("the image is empty; send the bytes of an image file", code="empty_body")
    return data


async def _deepstack_outcome(request: Request) -> tuple[LoadedModel, Outcome]:
    query_options(request, ())
    service, model = service_of(request), model_of(request)
    async with service.visit(timeout_of(request)) as visit:
        async with visit.receiving():
            upload = await read_upload(
                request, service.settings.max_body_bytes, 1, ("min_confidence", "api_key")
            )
        call = call_of(request, visit, model, _deepstack_options(upload), Priority.INTERACTIVE)
        return model, await service.detect(upload.images[0], call)


def _deepstack_options(upload: Upload) -> DetectParameters:
    """`min_confidence` is our `score`; an `api_key` counts in a header only, as everywhere."""
    given = upload.options.get("min_confidence")
    try:
        return DetectParameters.model_validate({} if given is None else {"score": given})
    except ValidationError:
        raise BadParameter(
            f"min_confidence={str(given)[:80]}: accepted: a number from 0 to 1",
            extra={"parameter": "min_confidence"},
        ) from None


def _detections(outcome: Outcome) -> list[tuple[int, list[float], float]]:
    """Class, x1 y1 x2 y2 and score of each, best first."""
    found = outcome.detections
    columns = (found.labels.tolist(), found.boxes.tolist(), found.scores.tolist())
    return list(zip(*columns, strict=True))


def _answer(request: Request, model: LoadedModel, tree: object, count: int) -> Response:
    request.state.detections = count
    text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    headers = {"X-Model-Digest": model.bundle.digest, "Cache-Control": "no-store"}
    return Response(text.encode(), media_type="application/json", headers=headers)
