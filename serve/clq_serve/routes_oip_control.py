"""The parts of the Open Inference Protocol that change the service: its models and its log.

They are on both listeners, because tritonclient knows one address only; on the public one, what
changes anything is refused unless the setting `public_model_control` is true.
"""

import asyncio
import logging
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from clq_serve.bodies import read_body
from clq_serve.errors import BadInferRequest, Forbidden
from clq_serve.oip_models import repository_index, repository_name
from clq_serve.oip_tensors import parse_object
from clq_serve.routes_info import service_of

router = APIRouter(prefix="/v2", include_in_schema=False)  # docs/oip.md describes it

_MAX_BODY_BYTES = 64 * 2**10
_LEVELS = {  # member of the protocol -> the level that it lets through, least important first
    "log_verbose_level": logging.DEBUG,
    "log_info": logging.INFO,
    "log_warning": logging.WARNING,
    "log_error": logging.ERROR,
}
_NO_TRACE: dict[str, Any] = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}


@router.post("/repository/index")
@router.post("/repository/{repository}/index")
async def index(request: Request, repository: str = "") -> JSONResponse:
    """Every model on disk or loaded, with its state; there is one repository, whatever its name."""
    asked = await _body(request)
    ready_only = asked.get("ready", False)
    if not isinstance(ready_only, bool):
        raise BadInferRequest("ready is not true or false")
    store = service_of(request).models
    return JSONResponse(await asyncio.to_thread(repository_index, store, ready_only))


@router.post("/repository/models/{name}/load")
async def load(request: Request, name: str) -> JSONResponse:
    """Loads the newest version on disk, under both its names; answers when it is in use."""
    _check_allowed(request)
    if (await _body(request)).get("parameters"):
        raise BadInferRequest(
            "load has parameters; accepted: none, because a model is what its bundle says"
        )
    store = service_of(request).models
    await store.load(await asyncio.to_thread(repository_name, store, name))
    return JSONResponse({})


@router.post("/repository/models/{name}/unload")
async def unload(request: Request, name: str) -> JSONResponse:
    """Unloads all versions under both names; requests that have one already are finished."""
    _check_allowed(request)
    await _body(request)  # unload_dependents: no model depends on another
    store = service_of(request).models
    store.unload(await asyncio.to_thread(repository_name, store, name))
    return JSONResponse({})


@router.get("/logging")
async def logging_settings() -> JSONResponse:
    """What the log shows."""
    return JSONResponse(_log_settings())


@router.post("/logging")
async def change_logging(request: Request) -> JSONResponse:
    """Shows more or less in the log, until the process ends."""
    _check_allowed(request)
    present = _log_settings()
    wanted = present | await _body(request)
    for key, value in wanted.items():
        if key not in present or type(value) is not type(present[key]):
            raise BadInferRequest(f"{key[:40]}: {str(value)[:40]!r} is not accepted")
        if key not in _LEVELS and value != present[key]:
            raise BadInferRequest(f"{key} cannot be changed; it is {present[key]!r}")
    shown = [level for key, level in _LEVELS.items() if wanted[key]]
    logging.getLogger("clq_serve").setLevel(min(shown, default=logging.CRITICAL))
    return JSONResponse(_log_settings())


@router.get("/trace/setting")
@router.get("/models/{name}/trace/setting")
async def trace_settings(name: str = "") -> JSONResponse:
    """Off: there is OpenTelemetry instead, which its own settings switch on."""
    return JSONResponse(_NO_TRACE)


@router.post("/trace/setting")
@router.post("/models/{name}/trace/setting")
async def change_trace(request: Request, name: str = "") -> JSONResponse:
    """Accepts what is so already; null means the default."""
    _check_allowed(request)
    for key, value in (await _body(request)).items():
        if value is not None and value != _NO_TRACE.get(key):
            raise BadInferRequest(
                f"{key[:40]} cannot be changed: traces leave by OpenTelemetry, not by this protocol"
            )
    return JSONResponse(_NO_TRACE)


def _check_allowed(request: Request) -> None:
    if not request.app.state.model_control:
        raise Forbidden(
            f"{request.url.path} is on the admin listener only; the setting public_model_control "
            "allows it here"
        )


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object in the body; an empty body is an empty object."""
    return parse_object(await read_body(request, _MAX_BODY_BYTES) or b"{}")


def _log_settings() -> dict[str, Any]:
    level = logging.getLogger("clq_serve").getEffectiveLevel()
    shown: dict[str, Any] = {key: level <= least for key, least in _LEVELS.items()}
    shown["log_verbose_level"] = int(level <= logging.DEBUG)
    return {"log_file": "", "log_format": "default", **shown}
