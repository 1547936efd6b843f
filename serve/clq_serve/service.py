"""One image from its bytes to its detections: admission, decoding, queue, engine, deadline."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from clq_serve.decoding import DecodedUpload, Decoders, most_pixels
from clq_serve.detector import Detections, DetectOptions, Prepared
from clq_serve.errors import ClientLeft, DeadlineExceeded, Unavailable, UploadTimeout
from clq_serve.jobs import Job, Priority
from clq_serve.lane_work import Answer, Work, late
from clq_serve.lanes import Lanes
from clq_serve.loading import LoadedModel
from clq_serve.metrics import Metrics
from clq_serve.models import ModelStore
from clq_serve.preprocess import Geometry, Pixels
from clq_serve.responses import Timing
from clq_serve.settings import Settings

__all__ = ["DetectCall", "DetectService", "Outcome", "Priority", "Visit"]

POLL_S = 0.25  # between two questions whether a client has left, where asking does not wait


@dataclass(frozen=True, slots=True)
class DetectCall:
    """What is wanted of one image.

    deadline_s  time.monotonic() after which nobody waits for the answer
    timeout_s   what the request was given from its start to deadline_s
    gone        True when the client has left: it may wait for that, or answer False at once and
                be asked again
    """

    model: LoadedModel
    options: DetectOptions
    priority: Priority
    deadline_s: float
    timeout_s: float
    gone: Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one image came to; `sha256` is of the uploaded bytes."""

    width: int
    height: int
    format: str
    orientation_applied: bool
    sha256: str
    detections: Detections
    timing: Timing


@dataclass(frozen=True, slots=True)
class Visit:
    """One request inside the service.

    deadline_s  time.monotonic() at which its time is over
    timeout_s   what it was given
    """

    deadline_s: float
    timeout_s: float

    @asynccontextmanager
    async def receiving(self) -> AsyncIterator[None]:
        """Around the reading of the body.  Raises UploadTimeout when the time is over."""
        try:
            async with asyncio.timeout(self.deadline_s - time.monotonic()):
                yield
        except TimeoutError:
            raise UploadTimeout(f"the image did not arrive within {self.timeout_s:g} s") from None


class DetectService:
    """Runs images against the loaded models: decoding in a small pool, engines in their lanes.

    At most `settings.max_pending` requests are inside at a time, whatever they wait for, and the
    queue before the lanes is limited in images, pixels and bytes, so that memory is bounded.  What
    would not fit is refused at once, before its body is read where that can be known.
    """

    def __init__(self, models: ModelStore, settings: Settings) -> None:
        self.models = models
        self.draining = False
        self.started_s = time.monotonic()
        self.metrics = Metrics()
        models.report_to(self.metrics)
        self.settings = settings
        self.lanes = Lanes(settings.policy, settings.engine_timeout_s, self.metrics.batch)
        self._decoders = Decoders(
            settings.decoder_threads,
            settings.image_limits,
            settings.decode_workers,
            settings.decode_memory_bytes,
        )
        self._pending = 0

    def close(self) -> None:
        """Waits for the work in progress and ends the threads."""
        self._decoders.close()
        self.lanes.close(self.settings.engine_timeout_s)

    @asynccontextmanager
    async def visit(
        self, timeout_s: float | None = None, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[Visit]:
        """Around everything that is done for one request, the reading of its body included.

        timeout_s  what the client asks for; the setting request_timeout_s is the most it gets

        Raises Unavailable at once when max_pending requests are inside, or when the queue has no
        room for an image or is so long that its result would be late.
        """
        if self._pending >= self.settings.max_pending:
            raise Unavailable(
                f"{self._pending} requests are pending already; try again later",
                extra={
                    "limit": self.settings.max_pending,
                    "observed": self._pending + 1,
                    "retry_after": self.lanes.retry_after_s(),
                },
            )
        given_s = min(timeout_s or self.settings.request_timeout_s, self.settings.request_timeout_s)
        deadline_s = time.monotonic() + given_s
        self.lanes.check_room(priority, deadline_s)
        self._pending += 1
        try:
            yield Visit(deadline_s, given_s)
        finally:
            self._pending -= 1

    async def detect(self, data: bytes, call: DetectCall) -> Outcome:
        """The detections in the image file `data`.

        Raises ServeError: Unavailable, DeadlineExceeded, ClientLeft, or what the image is refused
        for.
        """
        rule = call.model.bundle.manifest.input.rule
        most = most_pixels(rule)

        async def decode(unwanted: Callable[[], bool]) -> DecodedUpload:
            return await self._decoders.decode(data, rule, unwanted, call.deadline_s)

        return await self._detect(decode, most, len(data) + 3 * most, call)

    async def detect_prepared(self, pixels: Pixels, call: DetectCall) -> Outcome:
        """The detections in (H, W, 3) pixels that are resized and padded already, in their own
        coordinates; `format` and `sha256` of the Outcome are empty.

        Raises Unavailable, DeadlineExceeded or ClientLeft.
        """

        async def decode(unwanted: Callable[[], bool]) -> DecodedUpload:
            height, width = pixels.shape[:2]
            geometry = Geometry(width, height, width, height, width, height)
            return DecodedUpload(width, height, "", False, Prepared(pixels, geometry), "", 0.0)

        return await self._detect(decode, pixels.size // 3, pixels.nbytes, call)

    async def render(
        self, data: bytes, outcome: Outcome, call: DetectCall, drawn: Callable[[Pixels], bytes]
    ) -> bytes:
        """What `drawn` makes of the upright pixels of `data`, of which `outcome` came.

        Made where images are decoded.  Raises DeadlineExceeded, or what the image is refused for.
        """
        shorter_px, longer_px = sorted((outcome.width, outcome.height))
        full_size = replace(
            call.model.bundle.manifest.input.rule,
            shorter_px=shorter_px,
            longer_px=longer_px,
            upscale=False,
            multiple=1,
            largest_scale=None,
        )
        try:
            async with asyncio.timeout(call.deadline_s - time.monotonic()):
                return await self._decoders.draw(data, full_size, call.deadline_s, drawn)
        except TimeoutError:
            raise DeadlineExceeded(
                f"no result within {call.timeout_s:g} s; the time ran out in stage 'encode'",
                extra={"stage": "encode", "limit": call.timeout_s},
            ) from None

    async def _detect(
        self,
        decode: Callable[[Callable[[], bool]], Coroutine[None, None, DecodedUpload]],
        pixels: int,
        bytes: int,
        call: DetectCall,
    ) -> Outcome:
        """`pixels` and `bytes` are the most that the image takes while it waits."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        job = self.lanes.admit(
            Work(call.model, call.options, call.timeout_s, answer),
            priority=call.priority,
            pixels=pixels,
            bytes=bytes,
            deadline_s=call.deadline_s,
        )
        self.metrics.queue_depth(*self.lanes.held())
        watcher = loop.create_task(self._watch(call.gone, job))
        try:
            async with asyncio.timeout(call.deadline_s - time.monotonic()):
                decoded = await _unless_left(decode(answer.done), answer)
                self.lanes.enqueue(job, decoded.prepared, decoded.decode_s)
                given = await answer
        except TimeoutError:
            raise late(call.timeout_s, self.lanes.leave(job)) from None
        finally:
            watcher.cancel()
            self.lanes.leave(job)
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # or asyncio logs that nobody asked for it
            self.metrics.queue_depth(*self.lanes.held())
        total_s = time.monotonic() - (call.deadline_s - call.timeout_s)
        return self._outcome(decoded, given, total_s, call.model)

    async def _watch(self, gone: Callable[[], Awaitable[bool]], job: Job[Work]) -> None:
        """Takes the job out, wherever it is, when its client has left."""
        while not await gone():
            await asyncio.sleep(POLL_S)
        self.lanes.leave(job)
        if not job.work.answer.done():
            job.work.answer.set_exception(ClientLeft("the client left before it had its answer"))

    def _outcome(
        self, decoded: DecodedUpload, given: Answer, total_s: float, model: LoadedModel
    ) -> Outcome:
        for stage, seconds in (
            ("decode", decoded.decode_s),
            ("queue", given.queue_s),
            ("infer", given.infer_s),
            ("post", given.post_s),
            ("total", total_s),
        ):
            self.metrics.stage(stage, seconds)
        self.metrics.detections(model.name, model.version, given.detections)
        return Outcome(
            width=decoded.width,
            height=decoded.height,
            format=decoded.format,
            orientation_applied=decoded.orientation_applied,
            sha256=decoded.sha256,
            detections=given.detections,
            timing=Timing(
                decode=round(1e3 * decoded.decode_s, 3),
                queue=round(1e3 * given.queue_s, 3),
                infer=round(1e3 * given.infer_s, 3),
                post=round(1e3 * given.post_s, 3),
                total=round(1e3 * total_s, 3),
                batch_size=given.batch_size,
            ),
        )


async def _unless_left(
    decoding: Coroutine[None, None, DecodedUpload], answer: asyncio.Future[Answer]
) -> DecodedUpload:
    """The decoded image; raises ClientLeft as soon as that is the answer, so that an image whose
    turn has not come holds its place no longer.
    """
    task = asyncio.ensure_future(decoding)
    try:
        await asyncio.wait((task, answer), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await answer
        return await task
    finally:
        task.cancel()
