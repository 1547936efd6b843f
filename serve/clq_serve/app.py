"""The HTTP application: routes, their parameters and their answers."""

import importlib.resources
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from clq_serve import __version__, problems
from clq_serve.bundle import Manifest
from clq_serve.csp import content_security_policy
from clq_serve.detector import DetectOptions
from clq_serve.errors import BadParameter, Unavailable
from clq_serve.loading import LoadedModel, load_model
from clq_serve.request_log import RequestLog
from clq_serve.responses import (
    DetectAnswer,
    Detection,
    ImageInfo,
    Label,
    LabelsAnswer,
    ModelInfo,
    ModelRef,
    ModelsAnswer,
    Problem,
    StatusAnswer,
)
from clq_serve.service import DetectService, Outcome
from clq_serve.settings import Settings

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


def create_app(settings: Settings, model: LoadedModel | None = None) -> FastAPI:
    """The application.

    model  one that is loaded already: the command line loads first, so that a bad bundle is one
           line on stderr. None: `settings.bundle` is loaded, checked and warmed when the
           application starts, and a BundleError then stops the server
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = DetectService(load_model(settings) if model is None else model, settings)
        app.state.service = service
        yield
        service.close()

    app = FastAPI(
        title="CLQ",
        version=__version__,
        summary="Objects in an image, by one HTTP request.",
        lifespan=lifespan,
        docs_url=None,  # the framework's page loads its scripts from the internet
        redoc_url=None,
    )
    app.add_middleware(RequestLog)
    problems.install(app)
    _add_detect(app)
    _add_information(app)
    _add_documentation(app)
    return app


def _add_detect(app: FastAPI) -> None:
    @app.post(
        "/v1/detect",
        response_model=DetectAnswer,
        responses=problems.documented(_DETECT_PROBLEMS),
        dependencies=[Depends(_known_parameters)],
        openapi_extra=_DETECT_BODY,
    )
    async def detect(request: Request, query: Annotated[DetectQuery, Query()]) -> Response:
        """Detect objects in one image: a form field `image` (or `file`), or the raw body."""
        service = _service(request)
        options = _options(query, service.model)
        outcome = await service.detect(request, options)
        answer = _answer(request.state.request_id, service.model, outcome)
        request.state.detections = len(answer.detections)
        times = answer.timing_ms.model_dump(exclude={"batch_size"})
        headers = {
            "Server-Timing": ", ".join(f"{stage};dur={ms}" for stage, ms in times.items()),
            "Cache-Control": "no-store",
        }
        return Response(answer.model_dump_json(), media_type="application/json", headers=headers)


def _add_information(app: FastAPI) -> None:
    @app.get("/healthz")
    async def healthz() -> StatusAnswer:
        """Whether the process answers at all."""
        return StatusAnswer(status="ok")

    @app.get("/readyz", responses=problems.documented({503: "the service is stopping"}))
    async def readyz(request: Request) -> StatusAnswer:
        """Whether the service wants requests; 503 while it is stopping."""
        if _service(request).draining:
            raise Unavailable("the service is stopping", code="draining", extra={"retry_after": 1})
        return StatusAnswer(status="ready")

    @app.get("/v1/models")
    async def models(request: Request) -> ModelsAnswer:
        """The served models; there is one."""
        model = _service(request).model
        manifest = model.bundle.manifest
        info = ModelInfo(
            name=manifest.name,
            version=manifest.version,
            digest=model.bundle.digest,
            classes=tuple(manifest.class_names),
            thresholds=manifest.thresholds,
            trained_on=manifest.trained_on,
            metrics=manifest.metrics,
            licence=manifest.licence,
        )
        return ModelsAnswer(models=(info,))

    @app.get("/v1/labels")
    async def labels(request: Request) -> LabelsAnswer:
        """The classes of the model; `class_id` of a detection is the place in this list."""
        classes = _service(request).model.bundle.manifest.classes
        return LabelsAnswer(
            labels=tuple(
                Label(class_id=index, label=entry.name, category_id=entry.category_id)
                for index, entry in enumerate(classes)
            )
        )


def _add_documentation(app: FastAPI) -> None:
    page = importlib.resources.files("clq_serve").joinpath("docs.html").read_text("utf-8")
    headers = {"Content-Security-Policy": content_security_policy(page)}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _service(request: Request) -> DetectService:
    service = request.app.state.service
    assert isinstance(service, DetectService)
    return service


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
