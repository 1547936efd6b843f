"""The client for programs without asyncio: a loop in a thread of its own does the calls.

httpx without asyncio has a timeout for each read and write only: a server that sends one byte now
and then would hold a call for ever.  asyncio ends all of a call at its deadline, from the look-up
of the name to the last byte; and so there is one implementation of a call, not two.
"""

import asyncio
import threading
from collections.abc import Iterable, Sequence
from typing import Self

from clq_client.async_client import ask_ready, call, detect_each
from clq_client.errors import ClqError
from clq_client.images import ImageInput, image_bytes
from clq_client.loop_thread import LoopThread
from clq_client.requests import (
    detect_request,
    info_request,
    labels_request,
    parse_detect,
    parse_labels,
    parse_models,
)
from clq_client.results import DetectResult, Label, ModelInfo
from clq_client.settings import ClientSettings, Priority


class Client:
    """The service at `url`, for one or many threads.

    url         base URL; None takes the environment variable CLQ_URL, else http://127.0.0.1:8000
    api_key     sent as a bearer token; None takes CLQ_API_KEY, and sends none if it is not set
    model       name of a loaded model, and its version; None has the service's default
    priority    "interactive" or "bulk": bulk work waits while interactive work is there
    deadline_s  for one image with all its retries and waits; the service is told what is left of
                it, so that it does not work on what nobody waits for
    retries     how often a call is sent again: no connection, 408, 429, 502, 503, 504.  Detection
                is safe to repeat
    proxy       http(s)://[user:password@]host[:port]
    ca_file     certificates to trust instead of the usual ones

    Proxy and certificate variables of the environment are not read.  Every method raises ClqError.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        version: int | None = None,
        priority: Priority | None = None,
        deadline_s: float = 60.0,
        retries: int = 4,
        proxy: str | None = None,
        ca_file: str | None = None,
    ) -> None:
        self._settings = ClientSettings.checked(
            url, api_key, model, version, priority, deadline_s, retries, proxy, ca_file
        )
        self._lock = threading.Lock()
        self._loop: LoopThread | None = None
        self._closed = False

    @property
    def url(self) -> str:
        return self._settings.url

    def detect(
        self,
        image: ImageInput,
        *,
        score: float | None = None,
        iou: float | None = None,
        max: int | None = None,
        classes: Sequence[str] | None = None,
        traceparent: str | None = None,
    ) -> DetectResult:
        """What is in the image.  An option that is None has the service's default.

        image        path, bytes, binary file object, PIL image, or uint8 array (H, W[, 3 or 4])
                     RGB(A)
        score        in [0, 1]; only detections above it
        iou          in [0, 1]; above it the weaker of two boxes of one class is dropped
        max          1 to 1000 detections at most
        classes      names to look for
        traceparent  W3C trace context of the caller, passed on

        Raises ClqError; OSError, TypeError, ValueError for an image or option that cannot be sent.
        """
        content = image_bytes(image)  # in this thread: files and pictures belong to it
        request = detect_request(self._settings, content, score, iou, max, classes, traceparent)
        loop = self._started()
        return parse_detect(loop.run(call(loop.lines, self._settings, request)))

    def detect_many(
        self,
        images: Iterable[ImageInput],
        *,
        score: float | None = None,
        iou: float | None = None,
        max: int | None = None,
        classes: Sequence[str] | None = None,
        traceparent: str | None = None,
        concurrency: int = 4,
    ) -> "list[DetectResult | ClqError | OSError]":
        """What is in each image, in their order; the error in the place of an image that failed.

        concurrency  images on the way at once

        Every image has a deadline of its own.  Raises TypeError and ValueError for what can never
        be sent.  For folders and for more images than fit in memory there is `clq-client batch`.
        """
        given = list(images)  # in this thread, whatever makes them
        loop = self._started()

        async def detect(image: ImageInput) -> DetectResult:
            content = await asyncio.to_thread(image_bytes, image)
            request = detect_request(self._settings, content, score, iou, max, classes, traceparent)
            return parse_detect(await call(loop.lines, self._settings, request))

        return loop.run(detect_each(given, detect, concurrency))

    def models(self) -> tuple[ModelInfo, ...]:
        """The models that the service has loaded."""
        loop = self._started()
        return parse_models(loop.run(call(loop.lines, self._settings, info_request("/v1/models"))))

    def labels(self) -> tuple[Label, ...]:
        """The classes of the model; the index is the class_id of a detection."""
        loop = self._started()
        request = labels_request(self._settings)
        return parse_labels(loop.run(call(loop.lines, self._settings, request)))

    def ready(self) -> bool:
        """Whether the service takes images now; asks once, and raises if nothing is there."""
        loop = self._started()
        return loop.run(ask_ready(loop.lines, self._settings))

    def close(self) -> None:
        """Closes the connections; a call that is on its way in another thread is cancelled."""
        with self._lock:
            self._closed = True
            if self._loop is not None:
                self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> LoopThread:
        """The loop of this process: a fork takes neither the thread nor the connections along."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._loop is None or not self._loop.usable:
                self._loop = LoopThread(self._settings)
            return self._loop
