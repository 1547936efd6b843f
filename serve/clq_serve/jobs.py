"""The words of the scheduler: images as jobs, batches of them, classes, limits and reasons."""

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Generic, TypeVar

W = TypeVar("W")  # what the driver attaches to a job
Shape = tuple[int, int]  # padded height, width


class Priority(StrEnum):
    """`interactive` goes before `bulk`, which is not starved."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class State(Enum):
    """How far a job has come."""

    DECODING = "decode"
    WAITING = "queue"
    CLOSED = "closed"  # in a batch that no lane has taken yet
    RUNNING = "infer"
    DONE = "done"


class Reason(StrEnum):
    """Why a batch was closed."""

    COUNT = "count"  # it has max_batch images
    PIXELS = "pixels"  # the next image would exceed batch_pixels
    IDLE = "idle"  # a lane was free and batch_delay_ms is 0: what was there was taken
    DELAY = "delay"  # its first image had waited for batch_delay_ms
    SLACK = "slack"  # waiting longer would have cost an image its deadline
    RETRY = "retry"  # one image of a batch that failed


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of a scheduler; the queue's limits are for images that no lane has taken.

    decoders  how many images are decoded at the same time
    """

    lanes: int
    max_batch: int
    batch_pixels: int
    batch_delay_s: float
    queue_images: int
    queue_pixels: int
    queue_bytes: int
    decoders: int = 1


@dataclass(slots=True, eq=False)
class Job(Generic[W]):
    """One image.

    work          what the driver attached to it
    deadline_s    when nobody waits for it any more
    pixels        padded pixels; while it is decoded, the most that they can be
    bytes         memory that it holds; while it is decoded, the most that it can hold
    image_pixels  those of `pixels` that are not padding
    wanted        False once it was dropped while it ran: it is not retried
    """

    work: W
    priority: Priority
    deadline_s: float
    pixels: int
    bytes: int
    model: Hashable = None
    shape: Shape = (0, 0)
    image_pixels: int = 0
    number: int = 0
    state: State = State.DECODING
    queued_s: float = 0.0
    taken_s: float = 0.0
    wanted: bool = True

    @property
    def bucket(self) -> tuple[Hashable, Shape]:
        return self.model, self.shape


@dataclass(slots=True, eq=False)
class Batch(Generic[W]):
    """Jobs of one bucket that run together.

    alone  nothing else was inside when a lane took it: all cores may work for it
    ahead  what the driver prepared for it after `close_ahead`
    """

    jobs: list[Job[W]]
    reason: Reason
    lane: int = -1
    taken_s: float = 0.0
    alone: bool = False
    ahead: object = None

    @property
    def padding_waste(self) -> float:
        """Part of the pixels that is padding, in [0, 1)."""
        return 1 - sum(job.image_pixels for job in self.jobs) / sum(job.pixels for job in self.jobs)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an image is not admitted: the setting, its value, what it would have become."""

    limit_name: str
    limit: float
    observed: float


@dataclass(slots=True)
class Held:
    """What the images of one class hold that no lane has taken yet."""

    images: int = 0
    pixels: int = 0
    bytes: int = 0

    def add(self, job: Job[W], sign: int = 1) -> None:
        self.images += sign
        self.pixels += sign * job.pixels
        self.bytes += sign * job.bytes
