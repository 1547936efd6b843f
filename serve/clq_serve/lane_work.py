"""What an image carries through the lanes, and how its answer gets back to who waits for it."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from clq_serve.detector import Detections, DetectOptions, Prepared
from clq_serve.errors import DeadlineExceeded, EngineDown
from clq_serve.jobs import Batch, Job, State
from clq_serve.loading import LoadedModel
from clq_serve.preprocess import Pixels


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine gave for one image, and how it got there."""

    detections: Detections
    queue_s: float
    infer_s: float
    post_s: float
    batch_size: int


@dataclass(slots=True, eq=False)
class Work:
    """What one job carries: `model` and `options` from the start, `prepared` once decoded."""

    model: LoadedModel
    options: DetectOptions
    timeout_s: float
    answer: asyncio.Future[Answer]
    prepared: Prepared | None = None


Settled = tuple[asyncio.Future[Answer], Answer | Exception]


@dataclass(frozen=True, slots=True)
class Ahead:
    """The input of a batch that was closed ahead, put together while the lanes work."""

    jobs: list[Job[Work]]
    stacked: Future[Pixels]


def batch_input(batch: Batch[Work]) -> Pixels:
    """(N, H, W, 3), put together ahead, or now if it was not or if a job has left since."""
    if isinstance(batch.ahead, Ahead) and batch.ahead.jobs == batch.jobs:
        return batch.ahead.stacked.result()
    pixels = batch_pixels(batch)
    return pixels[0][None] if len(pixels) == 1 else np.stack(pixels)


def batch_pixels(batch: Batch[Work]) -> list[Pixels]:
    """The prepared pixels of each image."""
    return [image.pixels for image in batch_images(batch)]


def batch_images(batch: Batch[Work]) -> list[Prepared]:
    """Each image; a job in a batch has been decoded."""
    return [job.work.prepared for job in batch.jobs if job.work.prepared is not None]


def resolve(answers: Sequence[Settled]) -> None:
    """Gives each future its answer, in its event loop; what is done already stays as it is."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Settled]] = {}
    for future, answer in answers:
        by_loop.setdefault(future.get_loop(), []).append((future, answer))
    for loop, pairs in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(_fill, pairs)


def _fill(answers: Sequence[Settled]) -> None:
    for future, answer in answers:
        if future.done():  # its client left, or its time ran out
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def answer_down(jobs: list[Job[Work]]) -> None:
    """Tells those who wait that the engine which had their image does not work."""
    text = "the engine that had the image does not work"
    resolve([(job.work.answer, EngineDown(text, extra={"retry_after": 5})) for job in jobs])


def late(timeout_s: float, state: State) -> DeadlineExceeded:
    """The error of an image whose time ran out in that state."""
    stage = "queue" if state is State.CLOSED else state.value
    return DeadlineExceeded(
        f"no result within {timeout_s:g} s; the time ran out in stage {stage!r}",
        extra={"stage": stage, "limit": timeout_s},
    )
