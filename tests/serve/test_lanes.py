"""The lanes with real threads and the real tiny model, wrapped where a fault is needed.

An image of the tests is grey of one value `v` in its left half: the tiny model finds cells of score
and cls_score v / 255 there, so that every answer says which image it belongs to.
"""

import asyncio
import gc
import io
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from clq_serve import lanes as lanes_module
from clq_serve.admin_app import create_admin_app
from clq_serve.app import create_app
from clq_serve.bundle import load_bundle
from clq_serve.candidates import Candidates
from clq_serve.detector import DetectOptions, Detector
from clq_serve.engine import OnnxEngine
from clq_serve.errors import EngineDown, EngineError, Unavailable
from clq_serve.jobs import Job, Policy, Priority
from clq_serve.lane_work import Answer, Work
from clq_serve.lanes import Lanes
from clq_serve.loading import LoadedModel
from clq_serve.nms import ClassNms
from clq_serve.settings import Settings

PATIENCE_S = 60
POISON = 13


class TestEngine:
    """The real engine behind a gate; it breaks on images of value POISON, and when told to."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.broken = False
        self.seen: list[list[int]] = []  # the values of the images of each call
        self._engine = OnnxEngine(load_bundle(folder), threads=1)

    def run(self, batch: np.ndarray) -> Candidates:
        self.seen.append([int(value) for value in batch[:, 0, 0, 0]])
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        if self.broken or POISON in self.seen[-1]:
            raise RuntimeError("broken")
        return self._engine.run(batch)


def model_of(
    folder: Path,
    engines: list[TestEngine],
    wide: TestEngine | None = None,
    fresh: Callable[[bool], Detector] | None = None,
) -> LoadedModel:
    bundle = load_bundle(folder)

    def detector(engine: TestEngine) -> Detector:
        return Detector(engine, ClassNms(), bundle.manifest.input.rule)

    return LoadedModel(
        bundle,
        tuple(detector(engine) for engine in engines),
        None if wide is None else detector(wide),
        "test",
        0,
        fresh,
    )


def policy(lanes: int = 1, max_batch: int = 1, **changes: int) -> Policy:
    values = {"queue_images": 1000, "queue_pixels": 10**9, "queue_bytes": 10**9} | changes
    return Policy(lanes, max_batch, 10**9, 0.0, **values)


def offer(lanes: Lanes, model: LoadedModel, value: int) -> Job[Work]:
    """An image of that value, waiting in the queue."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32] = (value, 0, 0)
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    work = Work(model, DetectOptions(0.0, 0.6, 100), 30.0, future)
    deadline_s = time.monotonic() + PATIENCE_S
    job = lanes.admit(
        work, priority=Priority.INTERACTIVE, pixels=4096, bytes=12288, deadline_s=deadline_s
    )
    lanes.enqueue(job, model.lanes[0].prepare(pixels))
    return job


def value_of(answer: Answer) -> int:
    return round(255 * float(answer.detections.cls_scores[0]))


async def outcomes(jobs: list[Job[Work]]) -> list[int | type[BaseException]]:
    """What came back for each: the value of its image, or the kind of its error."""
    async with asyncio.timeout(PATIENCE_S):
        given = await asyncio.gather(*(job.work.answer for job in jobs), return_exceptions=True)
    return [type(one) if isinstance(one, BaseException) else value_of(one) for one in given]


async def until(fact: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.005)


def with_lanes(
    scenario: Callable[[Lanes], Awaitable[None]], of: Policy, engine_timeout_s: float = PATIENCE_S
) -> None:
    """Runs the scenario in an event loop of its own, and ends the threads whatever happens."""

    async def run() -> None:
        lanes = Lanes(of, engine_timeout_s)
        try:
            await scenario(lanes)
        finally:
            lanes.close(PATIENCE_S)

    asyncio.run(run())


@pytest.fixture
def engines(tiny_bundle: Path) -> list[TestEngine]:
    return [TestEngine(tiny_bundle) for _ in range(3)]


def test_every_image_gets_its_own_answer(tiny_bundle: Path, engines: list[TestEngine]) -> None:
    model = model_of(tiny_bundle, engines[:2])

    async def scenario(lanes: Lanes) -> None:
        values = [20 + index % 200 for index in range(400)]
        assert await outcomes([offer(lanes, model, value) for value in values]) == values
        assert lanes.held() == (0, 0, 0)
        assert all(record.size <= 4 for record in lanes.recent_batches())

    with_lanes(scenario, policy(lanes=2, max_batch=4))
    assert sum(len(call) for engine in engines for call in engine.seen) == 400


def test_a_full_batch_is_put_together_while_the_engine_works(
    tiny_bundle: Path, engines: list[TestEngine]
) -> None:
    model = model_of(tiny_bundle, engines[:1])

    async def scenario(lanes: Lanes) -> None:
        engines[0].gate.clear()
        first = offer(lanes, model, 50)
        await until(engines[0].entered.is_set)
        rest = [offer(lanes, model, 51 + index) for index in range(5)]
        engines[0].gate.set()
        assert await outcomes([first, *rest]) == [50, 51, 52, 53, 54, 55]
        assert (await first.work.answer).batch_size == 1
        assert (await rest[0].work.answer).batch_size == 4
        reasons = [record.reason for record in reversed(lanes.recent_batches())]
        assert reasons == ["idle", "count", "idle"]

    with_lanes(scenario, policy(max_batch=4))
    assert engines[0].seen == [[50], [51, 52, 53, 54], [55]]


def test_only_the_poisoned_image_gets_an_error(
    tiny_bundle: Path, engines: list[TestEngine]
) -> None:
    model = model_of(tiny_bundle, engines[:1])

    async def scenario(lanes: Lanes) -> None:
        engines[0].gate.clear()
        first = offer(lanes, model, 50)
        await until(engines[0].entered.is_set)
        rest = [offer(lanes, model, value) for value in (51, POISON, 53)]
        engines[0].gate.set()
        assert await outcomes([first, *rest]) == [50, 51, RuntimeError, 53]
        assert lanes.troubles() == []

    with_lanes(scenario, policy(max_batch=3))
    assert engines[0].seen == [[50], [51, POISON, 53], [51], [POISON], [53]]


def test_an_image_whose_client_left_never_reaches_the_engine(
    tiny_bundle: Path, engines: list[TestEngine]
) -> None:
    model = model_of(tiny_bundle, engines[:1])

    async def scenario(lanes: Lanes) -> None:
        engines[0].gate.clear()
        jobs = [offer(lanes, model, 50)]
        await until(engines[0].entered.is_set)
        jobs += [offer(lanes, model, 51 + index) for index in range(6)]
        for index in (1, 2, 6):  # two of a batch that was closed ahead, one that still waits
            lanes.leave(jobs[index])
            jobs[index].work.answer.cancel()
        engines[0].gate.set()
        assert await outcomes([jobs[0], *jobs[3:6]]) == [50, 53, 54, 55]

    with_lanes(scenario, policy(max_batch=4))
    assert engines[0].seen == [[50], [53, 54], [55]]


def test_an_image_that_is_alone_runs_on_all_cores(
    tiny_bundle: Path, engines: list[TestEngine]
) -> None:
    model = model_of(tiny_bundle, engines[:1], wide=engines[1])

    async def scenario(lanes: Lanes) -> None:
        assert await outcomes([offer(lanes, model, 50)]) == [50]
        engines[1].gate.clear()
        jobs = [offer(lanes, model, 51)]
        await until(lambda: len(engines[1].seen) == 2)
        jobs += [offer(lanes, model, 52), offer(lanes, model, 53)]
        engines[1].gate.set()
        assert await outcomes(jobs) == [51, 52, 53]

    with_lanes(scenario, policy())
    assert engines[1].seen == [[50], [51], [53]]  # 53 is alone again: nothing waits, nothing runs
    assert engines[0].seen == [[52]]


def test_an_engine_that_hangs_is_replaced_and_its_image_answered(
    tiny_bundle: Path, engines: list[TestEngine]
) -> None:
    rebuilding = threading.Event()

    def fresh(wide: bool) -> Detector:
        assert rebuilding.wait(PATIENCE_S)
        return model_of(tiny_bundle, engines[1:2]).lanes[0]

    model = model_of(tiny_bundle, engines[:1], fresh=fresh)

    async def scenario(lanes: Lanes) -> None:
        assert await outcomes([offer(lanes, model, 50)]) == [50]
        engines[0].gate.clear()
        assert await outcomes([offer(lanes, model, 51)]) == [EngineDown]
        assert "has not answered for 0.3 s" in lanes.troubles()[0]
        with pytest.raises(EngineDown):
            offer(lanes, model, 52)
        rebuilding.set()
        await until(lambda: not lanes.troubles())
        assert await outcomes([offer(lanes, model, 53)]) == [53]
        engines[0].gate.set()  # its late result must not reach anybody
        assert await outcomes([offer(lanes, model, 54)]) == [54]
        assert "EngineDown" in [record.result for record in lanes.recent_batches()]

    with_lanes(scenario, policy(), engine_timeout_s=0.3)


def test_an_engine_that_keeps_failing_is_rebuilt(
    tiny_bundle: Path, engines: list[TestEngine]
) -> None:
    model = model_of(
        tiny_bundle, engines[:1], fresh=lambda wide: model_of(tiny_bundle, engines[1:2]).lanes[0]
    )

    async def scenario(lanes: Lanes) -> None:
        engines[0].broken = True
        for value in (50, 51, 52):
            assert await outcomes([offer(lanes, model, value)]) == [RuntimeError]
        await until(lambda: not lanes.troubles())
        assert await outcomes([offer(lanes, model, 53)]) == [53]

    with_lanes(scenario, policy())
    assert engines[1].seen == [[53]]


def test_an_engine_that_cannot_be_rebuilt_is_given_up_and_nobody_is_left_waiting(
    tiny_bundle: Path, engines: list[TestEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "BACKOFF_S", 0.001)
    tries = []

    def fresh(wide: bool) -> Detector:
        tries.append(wide)
        raise EngineError("no")

    model = model_of(tiny_bundle, engines[:1], fresh=fresh)

    async def scenario(lanes: Lanes) -> None:
        engines[0].broken = True
        engines[0].gate.clear()
        jobs = [offer(lanes, model, 50 + index) for index in range(6)]
        engines[0].gate.set()
        assert await outcomes(jobs) == [RuntimeError] * 3 + [EngineDown] * 3
        await until(lambda: lanes.dead)
        assert "given up" in lanes.troubles()[0]
        with pytest.raises(EngineDown, match="no engine works now"):
            offer(lanes, model, 60)

    with_lanes(scenario, policy())
    assert tries == [False] * 3


def test_closing_answers_everybody(tiny_bundle: Path, engines: list[TestEngine]) -> None:
    model = model_of(tiny_bundle, engines[:1])

    async def scenario(lanes: Lanes) -> None:
        engines[0].gate.clear()
        running = offer(lanes, model, 50)
        await until(engines[0].entered.is_set)
        waiting = [offer(lanes, model, 51 + index) for index in range(6)]
        closing = asyncio.create_task(asyncio.to_thread(lanes.close, PATIENCE_S))
        assert await outcomes(waiting) == [Unavailable] * 6
        engines[0].gate.set()
        assert await outcomes([running]) == [50]
        await closing

    with_lanes(scenario, policy(max_batch=4))


def test_closing_does_not_wait_for_an_engine_that_hangs(
    tiny_bundle: Path, engines: list[TestEngine]
) -> None:
    model = model_of(tiny_bundle, engines[:1])

    async def scenario(lanes: Lanes) -> None:
        engines[0].gate.clear()
        job = offer(lanes, model, 50)
        await until(engines[0].entered.is_set)
        lanes.close(timeout_s=0.1)
        assert await outcomes([job]) == [Unavailable]
        engines[0].gate.set()

    with_lanes(scenario, policy())


def test_a_lane_whose_thread_ends_by_a_fault_of_ours_is_seen_and_its_image_answered(
    tiny_bundle: Path, engines: list[TestEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_bundle, engines[:1])

    async def scenario(lanes: Lanes) -> None:
        def fault(*_: object, **__: object) -> None:
            raise KeyError("a fault")

        monkeypatch.setattr(lanes._scheduler, "finish", fault)
        assert await outcomes([offer(lanes, model, 50)]) == [EngineDown]
        assert lanes.troubles() == ["lane 0: its thread has ended"]
        assert lanes.dead
        with pytest.raises(EngineDown):
            offer(lanes, model, 51)

    with_lanes(scenario, policy())


def test_a_full_queue_refuses_and_says_when_to_come_again(
    tiny_bundle: Path, engines: list[TestEngine]
) -> None:
    model = model_of(tiny_bundle, engines[:1])

    async def scenario(lanes: Lanes) -> None:
        engines[0].gate.clear()
        jobs = [offer(lanes, model, 50)]
        await until(engines[0].entered.is_set)
        jobs += [offer(lanes, model, 51 + index) for index in range(2)]
        with pytest.raises(Unavailable, match="queue_images=2") as refused:
            offer(lanes, model, 60)
        assert refused.value.extra["limit_name"] == "queue_images"
        assert int(str(refused.value.extra["retry_after"])) >= 1
        engines[0].gate.set()
        assert await outcomes(jobs) == [50, 51, 52]

    with_lanes(scenario, policy(queue_images=2))


def test_idle_lanes_do_not_keep_a_model_alive(tiny_bundle: Path) -> None:
    async def scenario(lanes: Lanes) -> None:
        model = model_of(tiny_bundle, [TestEngine(tiny_bundle), TestEngine(tiny_bundle)])
        alive = weakref.ref(model)
        await outcomes([offer(lanes, model, 50 + index) for index in range(20)])
        del model
        gc.collect()
        await until(lambda: gc.collect() >= 0 and alive() is None)

    with_lanes(scenario, policy(lanes=2, max_batch=2))


async def found_by(client: httpx.AsyncClient, values: list[int]) -> list[int]:
    """The value that each answer tells, all images sent at once."""
    answers = await asyncio.gather(
        *(client.post("/v1/detect", **upload(value)) for value in values)
    )
    return [round(255 * a.json()["detections"][0]["cls_score"]) for a in answers]


def test_answers_belong_to_their_images_through_http(start_server) -> None:
    server = start_server(threads=2, max_batch=4, max_pending=100)

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=server, timeout=PATIENCE_S) as client:
            values = [20 + 3 * index for index in range(60)]
            assert await found_by(client, values) == values

    asyncio.run(scenario())


def test_the_debug_page_tells_every_batch_and_why_it_was_closed(tiny_bundle: Path) -> None:
    async def scenario() -> None:
        app = create_app(Settings(bundle=tiny_bundle, threads=2, max_batch=4, max_pending=200))
        async with app.router.lifespan_context(app):
            public = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")
            admin_app = httpx.ASGITransport(create_admin_app(app.state.service))
            admin = httpx.AsyncClient(transport=admin_app, base_url="http://x")
            async with public, admin:
                values = [20 + 3 * index for index in range(60)]
                assert await found_by(public, values) == values
                state = (await admin.get("/debug/scheduler")).json()
        assert state["queue"]["held_images"] == 0
        assert state["drain_rate"] > 0
        assert sum(batch["size"] for batch in state["batches"]) == 60
        assert {batch["closed_by"] for batch in state["batches"]} <= {"idle", "count"}
        assert all(0 <= batch["padding_waste"] < 1 for batch in state["batches"])

    asyncio.run(scenario())


def upload(value: int) -> dict[str, object]:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32] = (value, 0, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {
        "content": file.getvalue(),
        "headers": {"Content-Type": "image/png"},
        "params": {"score": 0.01},
    }
