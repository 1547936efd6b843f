"""POST /v1/detect: the images of a request, its parameters and its answer."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from clq_serve import problems
from clq_serve.bundle import Manifest
from clq_serve.detector import DetectOptions
from clq_serve.errors import BadParameter
from clq_serve.loading import LoadedModel
from clq_serve.responses import DetectAnswer, Detection, ImageInfo, ModelRef
from clq_serve.routes_info import service_of
from clq_serve.service import DetectCall, Outcome, Priority
from clq_serve.uploads import departure, read_image

router = APIRouter()

_IMAGE = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
_FORM = {
    "schema": {
        "type": "object",
        "properties": {"image": _IMAGE["schema"], "file": _IMAGE["schema"]},
        "description": "exactly one of the two",
    }
}
_DETECT_BODY = {
    "requestBody": {
        "required": True,
        "description": "one image file: JPEG, PNG, WebP, AVIF or BMP",
        "content": {
            "multipart/form-data": _FORM,
            "image/*": _IMAGE,
            "application/octet-stream": _IMAGE,
        },
    }
}
_DETECT_PROBLEMS = {
    400: "no image, an empty one, or a malformed form",
    408: "the body did not arrive in time",
    413: "too many bytes, or an image with too many pixels",
    415: "the content type, or the format of the image, is not accepted",
    422: "a parameter is wrong, or the image is truncated or corrupt",
    500: "a bug in the service",
    503: "too many requests are pending; Retry-After says when to try again",
    504: "no result in time; `stage` says where the time ran out",
}


class DetectQuery(BaseModel):
    """Options of one request; what is not given comes from the model's manifest."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    score: Annotated[
        float | None, Field(ge=0, le=1, description="give detections with a score above this")
    ] = None
    iou: Annotated[
        float | None, Field(ge=0, le=1, description="IoU above which the weaker box is dropped")
    ] = None
    max: Annotated[int | None, Field(ge=1, le=1000, description="how many detections at most")] = (
        None
    )
    classes: Annotated[
        str | None, Field(description="names from /v1/labels, separated by commas; all if absent")
    ] = None


async def _known_parameters(request: Request) -> None:
    """Refuses a query parameter that would be ignored: an unknown one, or one given twice."""
    names = [name for name, _ in request.query_params.multi_items()]
    accepted = list(DetectQuery.model_fields)
    for name in names:
        if name not in accepted:
            raise BadParameter(
                f"there is no query parameter {name!r}; accepted: {', '.join(accepted)}",
                extra={"parameter": name, "accepted": accepted},
            )
        if names.count(name) > 1:
            raise BadParameter(f"{name} is given more than once", extra={"parameter": name})


@router.post(
    "/v1/detect",
    response_model=DetectAnswer,
    responses=problems.documented(_DETECT_PROBLEMS),
    dependencies=[Depends(_known_parameters)],
    openapi_extra=_DETECT_BODY,
)
async def detect(request: Request, query: Annotated[DetectQuery, Query()]) -> Response:
    """Detect objects in one image: a form field `image` (or `file`), or the raw body."""
    service = service_of(request)
    model = service.models.get()
    options = _options(query, model)
    async with service.visit() as visit:
        async with visit.receiving():
            data = await read_image(request, service.settings.max_body_bytes)
        call = DetectCall(
            model,
            options,
            Priority.INTERACTIVE,
            visit.deadline_s,
            visit.timeout_s,
            departure(request),
        )
        outcome = await service.detect(data, call)
    answer = _answer(request.state.request_id, model, outcome)
    request.state.detections = len(answer.detections)
    times = answer.timing_ms.model_dump(exclude={"batch_size"})
    headers = {
        "Server-Timing": ", ".join(f"{stage};dur={ms}" for stage, ms in times.items()),
        "Cache-Control": "no-store",
    }
    return Response(answer.model_dump_json(), media_type="application/json", headers=headers)


def _options(query: DetectQuery, model: LoadedModel) -> DetectOptions:
    defaults = DetectOptions.from_thresholds(model.bundle.manifest.thresholds)
    return DetectOptions(
        score=defaults.score if query.score is None else query.score,
        iou=defaults.iou if query.iou is None else query.iou,
        max=defaults.max if query.max is None else query.max,
        classes=None if query.classes is None else _labels(query.classes, model.bundle.manifest),
    )


def _labels(classes: str, manifest: Manifest) -> frozenset[int]:
    names = [name.strip() for name in classes.split(",")]
    known = manifest.class_names
    for name in names:
        if name not in known:
            raise BadParameter(
                f"classes: {name!r} is not a class of {manifest.name}; accepted: "
                + ", ".join(known),
                extra={"parameter": "classes", "accepted": known},
            )
    return frozenset(known.index(name) for name in names)


def _answer(request_id: str, model: LoadedModel, outcome: Outcome) -> DetectAnswer:
    manifest = model.bundle.manifest
    names = manifest.class_names
    found = outcome.detections
    return DetectAnswer(
        id=request_id,
        model=ModelRef(name=manifest.name, version=manifest.version, digest=model.bundle.digest),
        image=ImageInfo(
            width=outcome.width,
            height=outcome.height,
            orientation_applied=outcome.orientation_applied,
            format=outcome.format,
            sha256=outcome.sha256,
        ),
        detections=tuple(
            Detection(
                box=tuple(round(side, 3) for side in box),
                score=round(score, 6),
                class_id=label,
                label=names[label],
                quality=round(quality, 6),
                cls_score=round(cls_score, 6),
            )
            for box, score, label, cls_score, quality in zip(
                found.boxes.tolist(),
                found.scores.tolist(),
                found.labels.tolist(),
                found.cls_scores.tolist(),
                found.qualities.tolist(),
                strict=True,
            )
        ),
        timing_ms=outcome.timing,
    )
