"""The application of the admin listener: what operators and Prometheus ask, never the public."""

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response

from clq_serve import (
    __version__,
    problems,
    routes_admin_models,
    routes_debug,
    routes_oip_control,
    routes_probes,
)
from clq_serve.metrics import CONTENT_TYPE
from clq_serve.request_log import RequestLog
from clq_serve.routes_info import service_of
from clq_serve.service import DetectService

router = APIRouter()


def create_admin_app(service: DetectService) -> FastAPI:
    """The admin application of a service that runs already, for a listener of its own."""
    app = FastAPI(
        title="CLQ admin",
        version=__version__,
        docs_url=None,  # the framework's page loads its scripts from the internet
        redoc_url=None,
    )
    app.state.service = service
    app.state.model_control = True
    app.add_middleware(RequestLog)
    problems.install(app)
    app.include_router(router)
    app.include_router(routes_probes.router)
    app.include_router(routes_debug.router)
    app.include_router(routes_admin_models.router)
    app.include_router(routes_oip_control.router)
    return app


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Everything that is counted, in the text format of Prometheus."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE)
