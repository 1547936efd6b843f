"""The Open Inference Protocol v2, /v2/...: probes, descriptions, statistics and inference.

Bodies are read by hand: tritonclient sends no Content-Type.  Errors are problems with the member
`error` besides, which is all that its clients read.  Every answer that is not an error is a 200.
"""

import asyncio
import re
import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from clq_serve import __version__
from clq_serve.bodies import departure, read_body
from clq_serve.errors import BadInferRequest, Forbidden, UnknownModel
from clq_serve.oip_compression import compress, wanted_coding
from clq_serve.oip_infer import (
    all_outcomes,
    image_files,
    output_tensors,
    prepared_images,
    read_options,
    wanted_outputs,
)
from clq_serve.oip_models import (
    ProtocolModel,
    config,
    find_model,
    metadata,
    protocol_models,
)
from clq_serve.oip_stats import InferenceStats
from clq_serve.oip_tensors import (
    InferRequest,
    Tensor,
    bytes_array,
    parse_json_length,
    read_infer_request,
    write_infer_response,
)
from clq_serve.parameters import DetectParameters, priority_of, timeout_of
from clq_serve.routes_info import service_of
from clq_serve.routes_probes import healthz, readyz
from clq_serve.service import DetectCall, DetectService, Outcome, Priority, Visit

router = APIRouter(prefix="/v2", include_in_schema=False)  # docs/oip.md describes it

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
_SMALL_BYTES = 2**16  # of JSON that the event loop parses itself
_LENGTH = "Inference-Header-Content-Length"


@router.get("")
async def server() -> JSONResponse:
    """What this is and what of the protocol it has."""
    return JSONResponse({"name": "clq", "version": __version__, "extensions": EXTENSIONS})


@router.get("/health/live")
async def live(request: Request) -> JSONResponse:
    """Whether the process should live on, as /healthz."""
    await healthz(request)
    return JSONResponse({"live": True})


@router.get("/health/ready")
async def ready(request: Request) -> JSONResponse:
    """Whether the service wants requests."""
    await readyz(request)
    return JSONResponse({"ready": True})


@router.get("/models")
async def models(request: Request) -> JSONResponse:
    """The names of the models, as KServe lists them."""
    known = protocol_models(service_of(request).models)
    return JSONResponse({"models": sorted({model.name for model in known})})


@router.get("/models/stats")
async def all_stats(request: Request) -> JSONResponse:
    """Statistics of every loaded model."""
    stats = _stats(request)
    known = protocol_models(service_of(request).models)
    return JSONResponse({"model_stats": [stats.tree(model) for model in known]})


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}")
async def model_metadata(request: Request, name: str, version: str | None = None) -> JSONResponse:
    """Inputs, outputs and versions."""
    return JSONResponse(metadata(service_of(request).models, _find(request, name, version)))


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready")
async def model_ready(request: Request, name: str, version: str | None = None) -> JSONResponse:
    """200 if the model answers requests."""
    _find(request, name, version)
    return JSONResponse({"name": name, "ready": True})


@router.get("/models/{name}/config")
@router.get("/models/{name}/versions/{version}/config")
async def model_config(request: Request, name: str, version: str | None = None) -> JSONResponse:
    """Triton's ModelConfig."""
    settings = service_of(request).settings
    return JSONResponse(config(_find(request, name, version), settings))


@router.get("/models/{name}/stats")
@router.get("/models/{name}/versions/{version}/stats")
async def model_stats(request: Request, name: str, version: str | None = None) -> JSONResponse:
    """Statistics of one model: all its loaded versions, or one."""
    found = _find(request, name, version)
    known = protocol_models(service_of(request).models)
    wanted = [m for m in known if m.name == name and version in (None, m.version)] or [found]
    return JSONResponse({"model_stats": [_stats(request).tree(model) for model in wanted]})


@router.api_route("/systemsharedmemory/{rest:path}", methods=["GET", "POST"])
@router.api_route("/cudasharedmemory/{rest:path}", methods=["GET", "POST"])
async def shared_memory(rest: str) -> None:
    """Refused: a stranger's requests do not name memory of this machine."""
    raise Forbidden("shared memory is not supported; send tensors in the body of the request")


@router.post("/models/{name}/infer")
@router.post("/models/{name}/versions/{version}/infer")
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    """Detections in the images of the request's one input tensor."""
    service = service_of(request)
    started = time.perf_counter()
    priority = priority_of(request, DetectParameters(), Priority.INTERACTIVE)
    async with service.visit(timeout_of(request), priority) as visit:
        model = _find(request, name, version)
        try:
            asked = await _receive(request, service, visit, model)
            outcomes = await _run(request, service, visit, model, asked, priority)
        except Exception:  # whatever it was; only counted here
            _stats(request).failed(model, time.perf_counter() - started)
            raise
    request.state.detections = sum(len(o.detections.scores) for o in outcomes)
    encoding = time.perf_counter()
    response = _answer(request, model, asked, outcomes)
    ended = time.perf_counter()
    service.metrics.stage("encode", ended - encoding)
    _stats(request).succeeded(model, [o.timing for o in outcomes], ended - started)
    return response


async def _receive(
    request: Request, service: DetectService, visit: Visit, model: ProtocolModel
) -> InferRequest:
    start = time.perf_counter()
    async with visit.receiving():
        body = await read_body(request, service.settings.max_body_bytes)
        json_length = parse_json_length(request.headers.get(_LENGTH), len(body))
        if json_length == 0:
            asked = _bare_request(request, model, body)
        elif (len(body) if json_length is None else json_length) <= _SMALL_BYTES:
            asked = read_infer_request(body, json_length)
        else:
            async with request.app.state.large_json:  # one at a time: it takes much memory
                asked = await asyncio.to_thread(read_infer_request, body, json_length)
    service.metrics.stage("upload", time.perf_counter() - start)
    return asked


def _bare_request(request: Request, model: ProtocolModel, body: bytes) -> InferRequest:
    """The request whose body is not JSON but the one element of the one input: an image file.

    Its parameters can only be in the query.
    """
    if not model.takes_files:
        raise BadInferRequest(
            f"{_LENGTH} is 0, but the input of {model.name} has several sides of free size; "
            f"accepted: a JSON description before the tensor, or an image file to "
            f"{model.name}_image"
        )
    binary = "application/json" not in request.headers.get("accept", "")
    file = Tensor("image", "BYTES", bytes_array([body], (1,)))
    parameters = {name: _query_value(text) for name, text in request.query_params.items()}
    return InferRequest(None, parameters, (file,), None, binary)


def _query_value(text: str) -> str | float:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


async def _run(
    request: Request,
    service: DetectService,
    visit: Visit,
    model: ProtocolModel,
    asked: InferRequest,
    priority: Priority,
) -> list[Outcome]:
    options = read_options(asked.parameters, model.loaded)
    wanted_outputs(asked, model)  # a wrong name is told before the work, not after it
    most = service.settings.max_images_per_request
    timeout_s = min(visit.timeout_s, options.timeout_s or visit.timeout_s)
    call = DetectCall(
        model.loaded,
        options.detect,
        options.priority or priority,
        visit.deadline_s - visit.timeout_s + timeout_s,
        timeout_s,
        departure(request),
    )
    if model.takes_files:
        files = image_files(asked, most)
        return await all_outcomes([partial(service.detect, file, call) for file in files])
    pixels = prepared_images(asked, model.loaded.bundle.manifest.input.rule, most)
    return await all_outcomes([partial(service.detect_prepared, image, call) for image in pixels])


def _answer(
    request: Request, model: ProtocolModel, asked: InferRequest, outcomes: list[Outcome]
) -> Response:
    head: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if asked.id is not None:
        head["id"] = asked.id
    body, json_length = write_infer_response(head, output_tensors(asked, model, outcomes))
    slowest = max((outcome.timing for outcome in outcomes), key=lambda timing: timing.total)
    times = slowest.model_dump(exclude={"batch_size"})
    headers = {
        "Server-Timing": ", ".join(f"{stage};dur={ms}" for stage, ms in times.items()),
        "X-Model-Digest": model.loaded.bundle.digest,
        "Cache-Control": "no-store",
    }
    if json_length is not None:
        headers[_LENGTH] = str(json_length)
    coding = wanted_coding(request.headers.get("accept-encoding", ""))
    if coding is not None:
        headers["Content-Encoding"] = coding
        body = compress(body, coding)
    kind = "application/json" if json_length is None else "application/octet-stream"
    return Response(body, media_type=kind, headers=headers)


def _find(request: Request, name: str, version: str | None) -> ProtocolModel:
    if version is not None and not re.fullmatch(r"[0-9]{1,18}", version):
        raise UnknownModel(f"version {version[:40]!r} is not a whole number")
    return find_model(service_of(request).models, name, version)


def _stats(request: Request) -> InferenceStats:
    stats = request.app.state.inference_stats
    assert isinstance(stats, InferenceStats)
    return stats
