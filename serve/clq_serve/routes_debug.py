"""GET /debug/scheduler, on the admin listener: why images waited, and with whom they ran."""

import time
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from clq_serve.responses import Answer
from clq_serve.routes_info import service_of

router = APIRouter()


class QueueState(Answer):
    """What has been admitted and is not done."""

    decoding: Annotated[int, Field(description="images being decoded, or waiting for that")]
    waiting: Annotated[int, Field(description="decoded images that wait for a lane")]
    running: Annotated[int, Field(description="images in an engine")]
    held_images: Annotated[int, Field(description="decoding and waiting, against queue_images")]
    held_pixels: Annotated[int, Field(description="their padded pixels, against queue_pixels")]
    held_bytes: Annotated[int, Field(description="their memory, against queue_bytes")]


class BatchEntry(Answer):
    """One call of an engine that is over."""

    ended_s_ago: float
    model: Annotated[str, Field(description="NAME/VERSION")]
    shape: Annotated[tuple[int, int], Field(description="padded height, width")]
    size: int
    padding_waste: Annotated[float, Field(description="padded pixels that are not image, 0 to 1")]
    closed_by: Annotated[
        str,
        Field(
            description="count: max_batch images; pixels: the next would exceed batch_pixels; "
            "idle: a lane was free and took what was there; delay: batch_delay_ms was over; slack: "
            "a deadline left no time to wait; retry: one image of a batch that failed"
        ),
    ]
    lane: int
    wide: Annotated[bool, Field(description="ran alone in the service, with all cores")]
    queue_ms: Annotated[float, Field(description="the longest wait among its images")]
    infer_ms: Annotated[float, Field(description="model, suppression and mapping back")]
    result: Annotated[str, Field(description="ok, or the kind of error")]


class SchedulerAnswer(Answer):
    """State of the scheduler."""

    queue: QueueState
    drain_rate: Annotated[float, Field(description="images/s when busy, measured; 0: unknown yet")]
    troubles: Annotated[list[str], Field(description="lanes that are out of order")]
    batches: Annotated[list[BatchEntry], Field(description="the last 100, newest first")]


@router.get("/debug/scheduler")
async def scheduler(request: Request) -> SchedulerAnswer:
    """The queue, how fast it drains, and the last batches with the reason why each was closed."""
    lanes = service_of(request).lanes
    now = time.monotonic()
    images, pixels, bytes = lanes.held()
    return SchedulerAnswer(
        queue=QueueState(**lanes.state(), held_images=images, held_pixels=pixels, held_bytes=bytes),
        drain_rate=round(lanes.drain_rate(), 3),
        troubles=lanes.troubles(),
        batches=[
            BatchEntry(
                ended_s_ago=round(now - batch.ended_s, 3),
                model=batch.model,
                shape=batch.shape,
                size=batch.size,
                padding_waste=round(batch.padding_waste, 4),
                closed_by=batch.reason,
                lane=batch.lane,
                wide=batch.wide,
                queue_ms=round(1e3 * batch.queue_s, 3),
                infer_ms=round(1e3 * batch.infer_s, 3),
                result=batch.result,
            )
            for batch in lanes.recent_batches()
        ],
    )
