"""The application of the admin listener: what operators and Prometheus ask, never the public."""

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from clq_serve import (
    __version__,
    problems,
    routes_admin_models,
    routes_debug,
    routes_oip_control,
    routes_probes,
)
from clq_serve.auth import KeyGuard, admin_scopes
from clq_serve.errors import Forbidden
from clq_serve.keys import Keys
from clq_serve.metrics import CONTENT_TYPE
from clq_serve.request_log import RequestLog
from clq_serve.routes_info import service_of
from clq_serve.service import DetectService

router = APIRouter()


class NoPages:
    """ASGI middleware that refuses what a page in a browser sends.

    A page from anywhere can send requests to the loopback address of whoever looks at it; browsers
    mark those that could change something with an Origin, and no tool of an operator does.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "origin" in Headers(scope=scope):
            err = Forbidden("the admin listener takes no requests from pages in a browser")
            await problems.serve_problem(Request(scope), err)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def create_admin_app(service: DetectService, keys: Keys | None = None) -> FastAPI:
    """The admin application of a service that runs already, for a listener of its own.

    keys  those of the public application; None = who reaches the listener may do everything
    """
    app = FastAPI(
        title="CLQ admin",
        version=__version__,
        docs_url=None,  # the framework's page loads its scripts from the internet
        redoc_url=None,
    )
    app.state.service = service
    app.state.model_control = True
    if keys is not None:
        app.add_middleware(KeyGuard, keys=keys, scopes_of=admin_scopes)
    app.add_middleware(NoPages)
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
