"""The HTTP application: what it is made of and how errors leave it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from clq_serve import (
    __version__,
    openapi,
    pages,
    problems,
    routes_compat,
    routes_detect,
    routes_info,
    routes_oip,
    routes_oip_control,
    routes_probes,
)
from clq_serve.auth import KeyGuard, public_scopes
from clq_serve.cache import AnswerCache
from clq_serve.cors import add_cors, parse_origins
from clq_serve.keys import Keys
from clq_serve.models import ModelStore
from clq_serve.oip_stats import InferenceStats
from clq_serve.request_log import RequestLog
from clq_serve.service import DetectService
from clq_serve.settings import Settings
from clq_serve.telemetry import Telemetry
from clq_serve.watching import watching


def create_app(
    settings: Settings, models: ModelStore | None = None, keys: Keys | None = None
) -> FastAPI:
    """The application.

    models  loaded already: the command line loads first, so that a bad bundle is one line on
            stderr. None: what `settings` name is loaded, checked and warmed when the application
            starts, and a BundleError then stops the server
    keys    read already; None: read here, from what `settings` name, if anything
    """

    telemetry = Telemetry.configured(settings.otel_endpoint)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = ModelStore.open(settings) if models is None else models
        service = DetectService(store, settings)
        app.state.service = service
        async with watching(store, settings):
            yield
        service.close()
        store.close()
        if telemetry is not None:
            telemetry.close()

    app = FastAPI(
        title="CLQ",
        version=__version__,
        summary="Objects in an image, by one HTTP request.",
        lifespan=lifespan,
        docs_url=None,  # the framework's page loads its scripts from the internet
        redoc_url=None,
    )
    app.state.inference_stats = InferenceStats()
    app.state.large_json = asyncio.Lock()
    app.state.model_control = settings.public_model_control
    app.state.cache = AnswerCache(settings.response_cache_bytes)
    if keys is None and settings.keys is not None:
        keys = Keys(settings.keys)
    app.state.keys = keys
    if keys is not None:
        app.add_middleware(KeyGuard, keys=keys, scopes_of=public_scopes)
    add_cors(app, parse_origins(settings.cors_origins))
    app.add_middleware(RequestLog, telemetry=telemetry)
    problems.install(app)
    app.include_router(routes_detect.router)  # first: routes are tried in their order
    app.include_router(routes_compat.router)
    app.include_router(routes_info.router)
    app.include_router(routes_probes.router)
    app.include_router(routes_oip.router)
    app.include_router(routes_oip_control.router)
    app.include_router(pages.router)
    _set_schema(app)
    return app


def _set_schema(app: FastAPI) -> None:
    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = openapi.document(app)
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]  # FastAPI's documented way to extend it
