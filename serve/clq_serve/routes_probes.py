"""The probes that orchestrators ask, on both listeners."""

import time

from fastapi import APIRouter, Request

from clq_serve import problems
from clq_serve.errors import EngineDown, Unavailable, UnknownModel
from clq_serve.responses import HealthAnswer
from clq_serve.routes_info import service_of

router = APIRouter()


@router.get("/startupz")
async def startupz(request: Request) -> HealthAnswer:
    """Whether the start is over: nothing answers here before the models are loaded and warm."""
    return _status(request, "started")


@router.get("/healthz", responses=problems.documented({503: "`engine_down`: restart it"}))
async def healthz(request: Request) -> HealthAnswer:
    """Whether the process should live on: 503 when an engine was lost for good, so that only a new
    process has all of them.  Overloaded or stopping it is alive.
    """
    service = service_of(request)
    if service.lanes.lost:
        raise EngineDown("; ".join(service.lanes.troubles()))
    return _status(request, "alive")


_NOT_READY = {503: "`draining`, `not_loaded`, `engine_down`: why it does not"}


@router.get("/readyz", responses=problems.documented(_NOT_READY))
async def readyz(request: Request) -> HealthAnswer:
    """Whether the service wants requests: the default model is loaded, no engine is out of order,
    and it is not stopping.
    """
    service = service_of(request)
    if service.draining:
        raise Unavailable("the service is stopping", code="draining", extra={"retry_after": 1})
    if troubles := service.lanes.troubles():
        raise EngineDown("; ".join(troubles), extra={"retry_after": 5})
    try:
        service.models.get()
    except UnknownModel as err:
        raise Unavailable(err.detail, code="not_loaded", extra={"retry_after": 5}) from None
    return _status(request, "ready")


def _status(request: Request, status: str) -> HealthAnswer:
    service = service_of(request)
    return HealthAnswer(
        status=status,
        uptime_s=round(time.monotonic() - service.started_s, 3),
        draining=service.draining,
        models=tuple(f"{model.name}/{model.version}" for model in service.models.all()),
        troubles=tuple(service.lanes.troubles()),
    )
