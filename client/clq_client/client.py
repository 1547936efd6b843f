"""The clients: requests and answers of `requests`, retries of `retry`, over httpx."""

import asyncio
import ssl
import time
from collections.abc import Sequence
from functools import cache
from typing import Self

import httpx

from clq_client.errors import ClqError, ConnectionFailed, DeadlineExceeded, UnexpectedAnswer
from clq_client.images import ImageInput, image_bytes
from clq_client.requests import (
    Answer,
    Request,
    base_url,
    detect_request,
    error_of,
    parse_detect,
    parse_labels,
    parse_models,
    raise_for_status,
)
from clq_client.results import DetectResult, ModelInfo
from clq_client.retry import Attempts

CONNECT_TIMEOUT_S = 5.0
_LIMITS = httpx.Limits(max_connections=None)  # the caller says how many calls there are


class _Settings:
    """What both clients are made with, checked."""

    def __init__(self, url: str | None, deadline_s: float, retries: int) -> None:
        if not deadline_s > 0:
            raise ValueError(f"deadline_s: {deadline_s!r} is not a number of seconds > 0")
        if retries < 0:
            raise ValueError(f"retries: {retries!r} is not a whole number >= 0")
        self.url = base_url(url)
        self.deadline_s = deadline_s
        self.retries = retries


class Client:
    """The service at `url`, for one or many threads.

    url         base URL; None takes the environment variable CLQ_URL, else http://127.0.0.1:8000
    deadline_s  for one call with all its retries and waits.  A server that drips its answer can
                stretch it by one pause between two pieces; AsyncClient has no such gap
    retries     how often a call is sent again: no connection, 408, 429, 502, 503, 504.  Detection
                is safe to repeat

    Proxy and certificate variables of the environment are not read.  Every method raises ClqError.
    """

    def __init__(
        self, url: str | None = None, *, deadline_s: float = 60.0, retries: int = 4
    ) -> None:
        self._settings = _Settings(url, deadline_s, retries)
        self._http = httpx.Client(trust_env=False, verify=_tls(), limits=_LIMITS)

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
    ) -> DetectResult:
        """What is in the image.  An option that is None has the service's default.

        image    path, bytes, binary file object, PIL image, or uint8 array (H, W[, 3 or 4]) RGB(A)
        score    in [0, 1]; only detections above it
        iou      in [0, 1]; above it the weaker of two boxes of one class is dropped
        max      1 to 1000 detections at most
        classes  names to look for

        Raises ClqError; OSError, TypeError, ValueError for an image or classes that cannot be sent.
        """
        request = detect_request(image_bytes(image), score, iou, max, classes)
        return parse_detect(self._call(request))

    def models(self) -> tuple[ModelInfo, ...]:
        """The models that the service has loaded."""
        return parse_models(self._call(Request("GET", "/v1/models")))

    def labels(self) -> tuple[str, ...]:
        """The names of the classes; the index is the class_id of a detection."""
        return parse_labels(self._call(Request("GET", "/v1/labels")))

    def ready(self) -> bool:
        """Whether the service takes images now; asks once, and raises if nothing is there."""
        request = Request("GET", "/readyz")
        return _readiness(self._send(request, self._settings.deadline_s), request)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, request: Request) -> Answer:
        attempts = Attempts(self._settings.retries, self._settings.deadline_s)
        while True:
            try:
                answer = self._send(request, attempts.next_timeout_s())
                raise_for_status(answer, request)
                return answer
            except ClqError as error:
                wait_s = attempts.wait_s(error)
            time.sleep(wait_s)

    def _send(self, request: Request, timeout_s: float) -> Answer:
        ends_s = time.monotonic() + timeout_s
        body = bytearray()
        try:
            with self._http.stream(
                request.method,
                self.url + request.path,
                params=request.params,
                content=request.content,
                headers=request.headers,
                timeout=_timeout(timeout_s),
            ) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > ends_s:
                        raise _too_late(self._settings, request)
                return _answer(response, body)
        except httpx.HTTPError as error:
            raise _failure(error, self._settings, request) from error


class AsyncClient:
    """The same as Client, with coroutines; for asyncio."""

    def __init__(
        self, url: str | None = None, *, deadline_s: float = 60.0, retries: int = 4
    ) -> None:
        self._settings = _Settings(url, deadline_s, retries)
        self._http = httpx.AsyncClient(trust_env=False, verify=_tls(), limits=_LIMITS)

    @property
    def url(self) -> str:
        return self._settings.url

    async def detect(
        self,
        image: ImageInput,
        *,
        score: float | None = None,
        iou: float | None = None,
        max: int | None = None,
        classes: Sequence[str] | None = None,
    ) -> DetectResult:
        """See Client.detect."""
        content = await asyncio.to_thread(image_bytes, image)
        request = detect_request(content, score, iou, max, classes)
        return parse_detect(await self._call(request))

    async def models(self) -> tuple[ModelInfo, ...]:
        """See Client.models."""
        return parse_models(await self._call(Request("GET", "/v1/models")))

    async def labels(self) -> tuple[str, ...]:
        """See Client.labels."""
        return parse_labels(await self._call(Request("GET", "/v1/labels")))

    async def ready(self) -> bool:
        """See Client.ready."""
        request = Request("GET", "/readyz")
        return _readiness(await self._send(request, self._settings.deadline_s), request)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, request: Request) -> Answer:
        attempts = Attempts(self._settings.retries, self._settings.deadline_s)
        while True:
            try:
                answer = await self._send(request, attempts.next_timeout_s())
                raise_for_status(answer, request)
                return answer
            except ClqError as error:
                wait_s = attempts.wait_s(error)
            await asyncio.sleep(wait_s)

    async def _send(self, request: Request, timeout_s: float) -> Answer:
        body = bytearray()
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream(
                    request.method,
                    self.url + request.path,
                    params=request.params,
                    content=request.content,
                    headers=request.headers,
                    timeout=_timeout(timeout_s),
                ) as response,
            ):
                async for chunk in response.aiter_bytes():
                    body += chunk
                return _answer(response, body)
        except TimeoutError:
            raise _too_late(self._settings, request) from None
        except httpx.HTTPError as error:
            raise _failure(error, self._settings, request) from error


@cache
def _tls() -> ssl.SSLContext:
    """The usual certificates, read once: that takes 30 ms, more than some detections."""
    return httpx.create_ssl_context(trust_env=False)


def _timeout(timeout_s: float) -> httpx.Timeout:
    return httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))


def _answer(response: httpx.Response, body: bytearray) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, bytes(body))


def _readiness(answer: Answer, request: Request) -> bool:
    if answer.status not in (200, 503):
        raise error_of(answer, request)
    return answer.status == 200


def _too_late(settings: _Settings, request: Request) -> DeadlineExceeded:
    detail = f"{settings.url}: no result within {settings.deadline_s:g} s"
    return DeadlineExceeded(detail, request_id=request.request_id)


def _failure(error: httpx.HTTPError, settings: _Settings, request: Request) -> ClqError:
    """What an exception of httpx means to a caller."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return _too_late(settings, request)
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.TransportError):
        detail = f"{settings.url}: no answer: {reason}"
        return ConnectionFailed(detail, request_id=request.request_id)
    detail = f"{settings.url}: unreadable answer: {reason}"
    return UnexpectedAnswer(detail, request_id=request.request_id)
