"""The probes say what orchestrators act on: started, alive, ready."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from httpx import ASGITransport, AsyncClient, Response

from clq_serve import lanes as lanes_module
from clq_serve.app import create_app
from clq_serve.bundle import load_bundle
from clq_serve.candidates import Candidates
from clq_serve.detector import DetectOptions, Detector
from clq_serve.errors import EngineDown
from clq_serve.loading import LoadedModel
from clq_serve.models import ModelStore
from clq_serve.nms import ClassNms
from clq_serve.service import DetectCall, DetectService, Priority
from clq_serve.settings import Settings

PATIENCE_S = 60
Get = Callable[[str], Awaitable[Response]]


def with_service(
    model: LoadedModel, body: Callable[[DetectService, Get], Awaitable[None]], **settings: object
) -> None:
    values = Settings.model_validate({"threads": 1, **settings})
    app = create_app(values, ModelStore([model]))

    async def run() -> None:
        async with (
            asyncio.timeout(PATIENCE_S),
            app.router.lifespan_context(app),
            AsyncClient(transport=ASGITransport(app), base_url="http://x") as client,
        ):
            await body(app.state.service, client.get)

    asyncio.run(run())


def test_a_healthy_service_says_so_with_details(tiny_model_loaded: LoadedModel) -> None:
    async def body(service: DetectService, get: Get) -> None:
        for path, status in (("startupz", "started"), ("healthz", "alive"), ("readyz", "ready")):
            answer = await get(f"/{path}")
            assert answer.status_code == 200
            found = answer.json()
            assert found.pop("uptime_s") >= 0
            assert found == {
                "status": status,
                "draining": False,
                "models": ["tiny/1"],
                "troubles": [],
            }

    with_service(tiny_model_loaded, body)


def test_a_stopping_service_is_alive_and_not_ready(tiny_model_loaded: LoadedModel) -> None:
    async def body(service: DetectService, get: Get) -> None:
        service.draining = True
        ready = await get("/readyz")
        assert (ready.status_code, ready.json()["code"]) == (503, "draining")
        assert (await get("/healthz")).json()["draining"] is True
        assert (await get("/startupz")).status_code == 200

    with_service(tiny_model_loaded, body)


def test_an_overloaded_service_is_alive_and_ready(tiny_model_loaded: LoadedModel) -> None:
    async def body(service: DetectService, get: Get) -> None:
        async with service.visit():
            for path in ("/healthz", "/readyz", "/startupz"):
                assert (await get(path)).status_code == 200

    with_service(tiny_model_loaded, body, max_pending=1)


def test_an_engine_that_is_lost_for_good_ends_the_life_of_the_process(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "BACKOFF_S", 0.001)

    async def body(service: DetectService, get: Get) -> None:
        assert (await get("/healthz")).status_code == 200
        while not service.lanes.lost:
            service_call = DetectCall(
                service.models.get(),
                DetectOptions(0.3, 0.6, 100),
                Priority.INTERACTIVE,
                time.monotonic() + PATIENCE_S,
                PATIENCE_S,
                never,
            )
            with contextlib.suppress(RuntimeError, EngineDown):
                await service.detect_prepared(np.zeros((64, 64, 3), np.uint8), service_call)
        for path in ("/healthz", "/readyz"):
            answer = await get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "engine_down")
            assert "given up" in answer.json()["detail"]
        assert (await get("/startupz")).status_code == 200

    bundle = load_bundle(tiny_bundle)
    detector = Detector(BrokenEngine(), ClassNms(), bundle.manifest.input.rule)
    with_service(LoadedModel(bundle, (detector,), None, "test", 0, None), body)


class BrokenEngine:
    """Fails on every image; there is no other to replace it."""

    def run(self, batch: np.ndarray) -> Candidates:
        raise RuntimeError("broken")


async def never() -> bool:
    await asyncio.sleep(PATIENCE_S)
    return False
