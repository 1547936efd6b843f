"""One image from its bytes to its detections: admission, decoding, queue, engine, deadline."""

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from clq_serve.detector import Detections, DetectOptions, Prepared
from clq_serve.errors import ClientLeft, DeadlineExceeded, Unavailable, UploadTimeout
from clq_serve.loading import LoadedModel
from clq_serve.metrics import Metrics
from clq_serve.models import ModelStore
from clq_serve.preprocess import decode_image
from clq_serve.responses import Timing
from clq_serve.settings import Settings

MAX_DECODERS = 4


class Priority(StrEnum):
    """`interactive` goes before `bulk`, which is not starved."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class DetectCall:
    """What is wanted of one image.

    deadline_s  time.monotonic() after which nobody waits for the answer
    timeout_s   what the request was given from its start to deadline_s
    gone        whether the client has left
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


@dataclass(frozen=True, slots=True)
class _Decoded:
    """What an image holds while it waits for the engine: not the pixels at their full size."""

    width: int
    height: int
    format: str
    orientation_applied: bool
    prepared: Prepared
    sha256: str
    decode_ms: float


class DetectService:
    """Runs images against the loaded models: decoding in a small pool, engines in their threads.

    At most `settings.max_pending` requests are inside at a time, whatever they wait for, so that
    memory is bounded by max_pending times the largest accepted upload; one more is refused at once.
    """

    def __init__(self, models: ModelStore, settings: Settings) -> None:
        self.models = models
        self.draining = False
        self.metrics = Metrics()
        models.report_to(self.metrics)
        self.settings = settings
        self._pending = 0
        self._engine_free = asyncio.Lock()
        decoders = min(MAX_DECODERS, settings.threads)
        self._decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def close(self) -> None:
        """Waits for the work in progress and ends the threads."""
        self._decoders.shutdown(cancel_futures=True)
        self._engine.shutdown(cancel_futures=True)

    @asynccontextmanager
    async def visit(self, timeout_s: float | None = None) -> AsyncIterator[Visit]:
        """Around everything that is done for one request, the reading of its body included.

        timeout_s  what the client asks for; the setting request_timeout_s is the most it gets

        Raises Unavailable at once when max_pending requests are inside.
        """
        if self._pending >= self.settings.max_pending:
            raise Unavailable(
                f"{self._pending} requests are pending already; try again later",
                extra={
                    "limit": self.settings.max_pending,
                    "observed": self._pending + 1,
                    "retry_after": random.randint(1, 3),  # apart, or they all come back together
                },
            )
        given_s = min(timeout_s or self.settings.request_timeout_s, self.settings.request_timeout_s)
        self._pending += 1
        try:
            yield Visit(time.monotonic() + given_s, given_s)
        finally:
            self._pending -= 1

    async def detect(self, data: bytes, call: DetectCall) -> Outcome:
        """The detections in the image file `data`.

        Raises ServeError: DeadlineExceeded, ClientLeft, or what the image is refused for.
        """
        stage = "decode"
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(call.deadline_s - time.monotonic()):
                decoded = await loop.run_in_executor(self._decoders, self._decode, data, call.model)
                stage = "queue"
                queued = time.perf_counter()
                async with self._engine_free:
                    if await call.gone():
                        raise ClientLeft("the client left before its image reached the model")
                    stage = "infer"
                    queue_ms = 1e3 * (time.perf_counter() - queued)
                    (found,), times = await loop.run_in_executor(
                        self._engine,
                        call.model.lanes[0].detect_batch,
                        [decoded.prepared],
                        [call.options],
                    )
        except TimeoutError:
            raise DeadlineExceeded(
                f"no result within {call.timeout_s:g} s; the time ran out in stage {stage!r}",
                extra={"stage": stage, "limit": call.timeout_s},
            ) from None
        return Outcome(
            width=decoded.width,
            height=decoded.height,
            format=decoded.format,
            orientation_applied=decoded.orientation_applied,
            sha256=decoded.sha256,
            detections=found,
            timing=Timing(
                decode=round(decoded.decode_ms, 3),
                queue=round(queue_ms, 3),
                infer=round(times.infer_ms, 3),
                post=round(times.post_ms, 3),
                total=round(1e3 * (time.perf_counter() - started), 3),
                batch_size=1,
            ),
        )

    def _decode(self, data: bytes, model: LoadedModel) -> _Decoded:
        start = time.perf_counter()
        background = model.bundle.manifest.input.background
        image = decode_image(data, self.settings.image_limits, background)
        prepared = model.lanes[0].prepare(image)
        sha256 = hashlib.sha256(data).hexdigest()
        return _Decoded(
            width=image.pixels.shape[1],
            height=image.pixels.shape[0],
            format=image.format,
            orientation_applied=image.orientation_applied,
            prepared=prepared,
            sha256=sha256,
            decode_ms=1e3 * (time.perf_counter() - start),
        )
