"""The client for asyncio: requests and answers of `requests`, retries of `retry`, over httpx."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Self

import httpx

from clq_client.errors import ClqError, ConnectionFailed, DeadlineExceeded, UnexpectedAnswer
from clq_client.images import ImageInput, image_bytes
from clq_client.lines import Lines
from clq_client.requests import (
    Answer,
    Request,
    detect_request,
    error_of,
    info_request,
    labels_request,
    parse_detect,
    parse_labels,
    parse_models,
    raise_for_status,
)
from clq_client.results import DetectResult, Label, ModelInfo
from clq_client.retry import Attempts
from clq_client.settings import ClientSettings, Priority

CONNECT_TIMEOUT_S = 5.0


class AsyncClient:
    """The same as Client, with coroutines; to be used in one event loop."""

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
        self._lines = Lines(self._settings)

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
        traceparent: str | None = None,
    ) -> DetectResult:
        """See Client.detect."""
        # Only what takes time leaves the loop.
        content = image if type(image) is bytes else await asyncio.to_thread(image_bytes, image)
        request = detect_request(self._settings, content, score, iou, max, classes, traceparent)
        return parse_detect(await call(self._lines, self._settings, request))

    async def detect_many(
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
        """See Client.detect_many."""

        async def detect(image: ImageInput) -> DetectResult:
            return await self.detect(
                image, score=score, iou=iou, max=max, classes=classes, traceparent=traceparent
            )

        return await detect_each(images, detect, concurrency)

    async def models(self) -> tuple[ModelInfo, ...]:
        """See Client.models."""
        return parse_models(await call(self._lines, self._settings, info_request("/v1/models")))

    async def labels(self) -> tuple[Label, ...]:
        """See Client.labels."""
        return parse_labels(await call(self._lines, self._settings, labels_request(self._settings)))

    async def ready(self) -> bool:
        """See Client.ready."""
        return await ask_ready(self._lines, self._settings)

    async def close(self) -> None:
        await self._lines.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def call(lines: Lines, settings: ClientSettings, request: Request) -> Answer:
    """The answer of status 200, after as many attempts as the settings allow."""
    attempts = Attempts(settings.retries, settings.deadline_s)
    while True:
        try:
            answer = await _send(lines, settings, request, attempts.next_timeout_s())
            raise_for_status(answer, request)
            return answer
        except ClqError as error:
            wait_s = attempts.wait_s(error)
        await asyncio.sleep(wait_s)


async def detect_each(
    images: Iterable[ImageInput],
    detect: Callable[[ImageInput], Awaitable[DetectResult]],
    concurrency: int,
) -> "list[DetectResult | ClqError | OSError]":
    """What `detect` gives for each image, in their order, or the error that it raises."""
    if concurrency < 1:
        raise ValueError(f"concurrency: {concurrency!r} is not a whole number >= 1")
    numbered = enumerate(images)
    found: dict[int, DetectResult | ClqError | OSError] = {}

    async def work() -> None:
        for index, image in numbered:
            try:
                found[index] = await detect(image)
            except (ClqError, OSError) as error:
                found[index] = error

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as group_error:  # a mistake of the caller: TypeError, ValueError
        raise group_error.exceptions[0] from group_error
    return [found[index] for index in sorted(found)]


async def ask_ready(lines: Lines, settings: ClientSettings) -> bool:
    """Whether /readyz says yes; asked once."""
    request = info_request("/readyz")
    answer = await _send(lines, settings, request, settings.deadline_s)
    if answer.status not in (200, 503):
        raise error_of(answer, request)
    return answer.status == 200


async def _send(
    lines: Lines, settings: ClientSettings, request: Request, timeout_s: float
) -> Answer:
    """One attempt.  asyncio's timeout is for all of it: httpx's is for each read and write."""
    body = bytearray()
    try:
        async with (
            asyncio.timeout(timeout_s),
            lines.take() as http,
            http.stream(
                request.method,
                settings.url + request.path,
                params=request.params,
                content=request.content,
                headers=request.headers(settings, timeout_s),
                timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
            ) as response,
        ):
            async for chunk in response.aiter_bytes():
                body += chunk
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status_code, headers, bytes(body))
    except TimeoutError:
        raise _too_late(settings, request) from None
    except httpx.HTTPError as error:
        raise _failure(error, settings, request) from error


def _too_late(settings: ClientSettings, request: Request) -> DeadlineExceeded:
    detail = f"{settings.url}: no result within {settings.deadline_s:g} s"
    return DeadlineExceeded(detail, request_id=request.request_id)


def _failure(error: httpx.HTTPError, settings: ClientSettings, request: Request) -> ClqError:
    """What an exception of httpx means to a caller."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return _too_late(settings, request)
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.TransportError):
        detail = f"{settings.url}: no answer: {reason}"
        return ConnectionFailed(detail, request_id=request.request_id)
    detail = f"{settings.url}: unreadable answer: {reason}"
    return UnexpectedAnswer(detail, request_id=request.request_id)
