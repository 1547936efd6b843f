"""The probes that orchestrators ask, on both listeners."""

from fastapi import APIRouter, Request

from clq_serve import problems
from clq_serve.errors import EngineDown, Unavailable
from clq_serve.responses import StatusAnswer
from clq_serve.routes_info import service_of

router = APIRouter()


@router.get("/healthz")
async def healthz() -> StatusAnswer:
    """Whether the process answers at all."""
    return StatusAnswer(status="ok")


@router.get("/readyz", responses=problems.documented({503: "it does not"}))
async def readyz(request: Request) -> StatusAnswer:
    """Whether the service wants requests; 503 while it is stopping or an engine is rebuilt."""
    service = service_of(request)
    if service.draining:
        raise Unavailable("the service is stopping", code="draining", extra={"retry_after": 1})
    if troubles := service.lanes.troubles():
        raise EngineDown("; ".join(troubles), extra={"retry_after": 5})
    return StatusAnswer(status="ready")
