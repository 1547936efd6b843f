"""Many images through the service, several at a time; one that fails does not stop the others."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clq_client.annotate import write_annotated
from clq_client.async_client import AsyncClient
from clq_client.errors import ClqError
from clq_client.results import DetectResult


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for every image; None = the service's default."""

    score: float | None
    iou: float | None
    max: int | None
    classes: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Job:
    """One image, and where its annotated copy goes (None = nowhere)."""

    image: Path
    annotated: Path | None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image has no result, or no annotated copy, for a person and for a program."""

    reason: str
    error: dict[str, object]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image.  Both members are there where only the annotated copy failed."""

    image: Path
    result: DetectResult | None
    failure: Failure | None


class InOrder:
    """Passes outcomes on in the order of the jobs, as soon as all before them are there."""

    def __init__(self, deliver: Callable[[Outcome], None]) -> None:
        self._deliver = deliver
        self._early: dict[int, Outcome] = {}
        self._next = 0

    def put(self, index: int, outcome: Outcome) -> None:
        self._early[index] = outcome
        while self._next in self._early:
            self._deliver(self._early.pop(self._next))
            self._next += 1

    def flush(self) -> None:
        """Passes on what waits for a job that will not come any more."""
        for index in sorted(self._early):
            self._deliver(self._early.pop(index))


async def detect_all(
    client: AsyncClient,
    jobs: Sequence[Job],
    options: Options,
    concurrency: int,
    put: Callable[[int, Outcome], None],
) -> None:
    """Calls `put(index of the job, outcome)` for each job, in the order in which they end."""
    queue = iter(enumerate(jobs))
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(jobs))):
                group.create_task(_work(client, queue, options, put))
    except ExceptionGroup as group_error:  # a full disk, or a bug: not about one image
        raise group_error.exceptions[0] from group_error


async def _work(
    client: AsyncClient,
    queue: Iterator[tuple[int, Job]],
    options: Options,
    put: Callable[[int, Outcome], None],
) -> None:
    for index, job in queue:
        put(index, await _outcome(client, job, options))


async def _outcome(client: AsyncClient, job: Job, options: Options) -> Outcome:
    result: DetectResult | None = None
    try:
        data = await asyncio.to_thread(job.image.read_bytes)
        result = await client.detect(
            data,
            score=options.score,
            iou=options.iou,
            max=options.max,
            classes=options.classes,
        )
        if job.annotated is not None:
            await asyncio.to_thread(write_annotated, data, result, job.annotated)
    except ClqError as error:
        failure = Failure(f"{type(error).__name__}: {error}", error.to_dict())
        return Outcome(job.image, None, failure)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow: SyntaxError for a broken PNG
        told: dict[str, object] = {
            "type": type(error).__name__,
            "status": None,
            "code": "",
            "detail": str(error),
        }
        stage = "cannot read" if result is None else "detected, but not annotated"
        return Outcome(job.image, result, Failure(f"{stage}: {error}", told | {"request_id": ""}))
    return Outcome(job.image, result, None)
