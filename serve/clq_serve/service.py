"""One request from its bytes to its detections: admission, decoding, queue, engine, deadline."""

import asyncio
import hashlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import Request

from clq_serve.detector import Detections, DetectOptions, Prepared
from clq_serve.errors import ClientLeft, DeadlineExceeded, ServeError, Unavailable, UploadTimeout
from clq_serve.loading import LoadedModel
from clq_serve.preprocess import decode_image
from clq_serve.responses import Timing
from clq_serve.settings import Settings
from clq_serve.uploads import read_image

MAX_DECODERS = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one request came to; `sha256` is of the uploaded bytes."""

    width: int
    height: int
    format: str
    orientation_applied: bool
    sha256: str
    detections: Detections
    timing: Timing


@dataclass(frozen=True, slots=True)
class _Decoded:
    """What a request holds while it waits for the engine: not the pixels at their full size."""

    width: int
    height: int
    format: str
    orientation_applied: bool
    prepared: Prepared
    sha256: str
    decode_ms: float


@dataclass(slots=True)
class _Progress:
    stage: str
    started: float  # time.perf_counter(), seconds


class DetectService:
    """Runs requests against one model: decoding in a small pool, the engine in a thread of its own.

    At most `settings.max_pending` requests are inside at a time, whatever they wait for, so that
    memory is bounded by max_pending times the largest accepted upload; one more is refused at once.
    """

    def __init__(self, model: LoadedModel, settings: Settings) -> None:
        self.model = model
        self.draining = False
        self._settings = settings
        self._pending = 0
        self._engine_free = asyncio.Lock()
        decoders = min(MAX_DECODERS, settings.threads)
        self._decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def close(self) -> None:
        """Waits for the work in progress and ends the threads."""
        self._decoders.shutdown(cancel_futures=True)
        self._engine.shutdown(cancel_futures=True)

    async def detect(self, request: Request, options: DetectOptions) -> Outcome:
        """The detections in the image that `request` carries.

        Raises ServeError: Unavailable at once when max_pending requests are inside; UploadTimeout
        or DeadlineExceeded after request_timeout_s; whatever the body or the image is refused for.
        """
        with self._admitted():
            progress = _Progress("upload", time.perf_counter())
            try:
                async with asyncio.timeout(self._settings.request_timeout_s):
                    return await self._run(request, options, progress)
            except TimeoutError:
                raise _late(progress.stage, self._settings.request_timeout_s) from None

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._pending >= self._settings.max_pending:
            raise Unavailable(
                f"{self._pending} requests are pending already; try again later",
                extra={
                    "limit": self._settings.max_pending,
                    "observed": self._pending + 1,
                    "retry_after": random.randint(1, 3),  # apart, or they all come back together
                },
            )
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1

    async def _run(self, request: Request, options: DetectOptions, progress: _Progress) -> Outcome:
        loop = asyncio.get_running_loop()
        data = await read_image(request, self._settings.max_body_bytes)
        progress.stage = "decode"
        decoded = await loop.run_in_executor(self._decoders, self._decode, data)
        progress.stage = "queue"
        queued = time.perf_counter()
        async with self._engine_free:
            if await request.is_disconnected():
                raise ClientLeft("the client left before its image reached the model")
            progress.stage = "infer"
            queue_ms = 1e3 * (time.perf_counter() - queued)
            (found,), times = await loop.run_in_executor(
                self._engine, self.model.detector.detect_prepared, [decoded.prepared], options
            )
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
                total=round(1e3 * (time.perf_counter() - progress.started), 3),
                batch_size=1,
            ),
        )

    def _decode(self, data: bytes) -> _Decoded:
        start = time.perf_counter()
        background = self.model.bundle.manifest.input.background
        image = decode_image(data, self._settings.image_limits, background)
        prepared = self.model.detector.prepare(image)
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


def _late(stage: str, timeout_s: float) -> ServeError:
    if stage == "upload":
        return UploadTimeout(f"the image did not arrive within {timeout_s:g} s")
    return DeadlineExceeded(
        f"no result within {timeout_s:g} s; the time ran out in stage {stage!r}",
        extra={"stage": stage, "limit": timeout_s},
    )
