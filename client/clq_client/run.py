"""Images through the service, as many at a time as it takes; one that fails stops no other."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clq_client.annotate import write_annotated
from clq_client.async_client import AsyncClient
from clq_client.errors import (
    BadRequest,
    ClqError,
    ConnectionFailed,
    DeadlineExceeded,
    NotAllowed,
    UnknownModel,
)
from clq_client.pace import Pace
from clq_client.results import DetectResult
from clq_client.retry import is_passing

MOST_ATTEMPTS = 10  # that the service was alive for; an image that always kills it ends here
MOST_BYTES = 64 * 2**20  # the service takes 20 MiB unless it is told otherwise


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for every image; None = the service's default."""

    score: float | None = None
    iou: float | None = None
    max: int | None = None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """The place of a picture in a video."""

    video: str
    index: int
    time_s: float


@dataclass(frozen=True, slots=True)
class Job:
    """One image.

    key        what it is called in the results
    source     its file, the bytes of it, or the reason why there are none
    annotated  where its copy with boxes goes; None = nowhere
    """

    key: str
    source: Path | bytes | OSError
    annotated: Path | None = None
    frame: Frame | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image has no result, or no annotated copy, for a person and for a program."""

    reason: str
    error: dict[str, object]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image.  Both members are there where only the annotated copy failed."""

    job: Job
    result: DetectResult | None
    failure: Failure | None


class InOrder:
    """Passes outcomes on in the order of the jobs, as soon as all before them are there."""

    def __init__(self, jobs: Sequence[Job], deliver: Callable[[Outcome], None]) -> None:
        self._numbers = {job.key: number for number, job in enumerate(jobs)}
        self._deliver = deliver
        self._early: dict[int, Outcome] = {}
        self._next = 0

    def put(self, outcome: Outcome) -> None:
        self._early[self._numbers[outcome.job.key]] = outcome
        while self._next in self._early:
            self._deliver(self._early.pop(self._next))
            self._next += 1

    def flush(self) -> None:
        """Passes on what waits for a job that will not come any more."""
        for number in sorted(self._early):
            self._deliver(self._early.pop(number))


async def detect_all(
    client: AsyncClient,
    jobs: AsyncIterator[Job],
    options: Options,
    pace: Pace,
    most: int,
    put: Callable[[Outcome], Awaitable[None]],
    waiting: Callable[[ClqError], None] = lambda error: None,
) -> None:
    """Calls `put` for each job, in the order in which they end.

    client   without retries of its own: they are made here, where all images know of each other
    most     images in memory, and on the way at once
    waiting  is told of every error after which an image is sent again

    Raises ServiceGone; and the ClqError that every other image would get too: no valid key, no
    such model, a wrong parameter.
    """
    lock = asyncio.Lock()  # an async generator cannot be asked by two tasks at once

    async def work() -> None:
        while True:
            async with lock:
                job = await anext(jobs, None)
            if job is None:
                return
            await put(await _outcome(client, job, options, pace, waiting))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(most):
                group.create_task(work())
    except ExceptionGroup as group_error:  # the service is gone, a full disk, or a bug
        raise group_error.exceptions[0] from group_error


def read_image(path: Path) -> bytes:
    """The bytes of a file.

    Raises OSError, also for what is no file (reading a pipe might never end) or much too large.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(f"{path}: is not a file")
        if about.st_size > MOST_BYTES:
            raise OSError(f"{path}: {about.st_size} bytes; accepted: up to {MOST_BYTES}")
        return file.read()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe without a writer would block for ever


async def _outcome(
    client: AsyncClient,
    job: Job,
    options: Options,
    pace: Pace,
    waiting: Callable[[ClqError], None],
) -> Outcome:
    result: DetectResult | None = None
    try:
        data = await _bytes_of(job)
        result = await _result(client, data, options, pace, waiting)
        if job.annotated is not None:
            await asyncio.to_thread(write_annotated, data, result, job.annotated)
    except ClqError as error:
        if _concerns_all(error):
            raise
        return Outcome(job, None, Failure(f"{type(error).__name__}: {error}", error.to_dict()))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow: SyntaxError for a broken PNG
        stage = "cannot read" if result is None else "detected, but not annotated"
        return Outcome(job, result, Failure(f"{stage}: {error}", _told(error)))
    return Outcome(job, result, None)


async def _bytes_of(job: Job) -> bytes:
    if isinstance(job.source, OSError):
        raise job.source
    if isinstance(job.source, bytes):
        return job.source
    return await asyncio.to_thread(read_image, job.source)


async def _result(
    client: AsyncClient,
    data: bytes,
    options: Options,
    pace: Pace,
    waiting: Callable[[ClqError], None],
) -> DetectResult:
    """The result, after as many attempts as it takes.

    A service that refuses for load or is not there costs an image nothing but time; an attempt
    counts where it broke though the service is ready, because then it may be the image's fault.
    """
    counted = sent = 0
    while True:
        try:
            async with pace as sent_s:
                result = await client.detect(
                    data,
                    score=options.score,
                    iou=options.iou,
                    max=options.max,
                    classes=options.classes,
                )
            pace.answered()
            return result
        except ClqError as error:
            sent += 1
            error.attempts = sent
            if not is_passing(error) and not isinstance(error, DeadlineExceeded):
                pace.answered()
                raise
            wait_s = pace.failed(error, sent_s)
            waiting(error)
            await asyncio.sleep(wait_s)
            broke = isinstance(error, ConnectionFailed) or error.status not in (429, 503)
            counted += broke and await _is_ready(client)
            if counted >= MOST_ATTEMPTS:
                raise


async def _is_ready(client: AsyncClient) -> bool:
    try:
        return await client.ready()
    except ClqError:
        return False


def _concerns_all(error: ClqError) -> bool:
    wrong_option = isinstance(error, BadRequest) and error.code == "bad_parameter"
    return wrong_option or isinstance(error, NotAllowed | UnknownModel)


def _told(error: Exception) -> dict[str, object]:
    return {
        "type": type(error).__name__,
        "status": None,
        "code": "",
        "detail": str(error),
        "request_id": "",
    }
