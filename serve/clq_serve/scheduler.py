"""Which images run next, together, on which lane: a state machine without threads and clock.

Whoever drives it says what time it is (`now`, seconds of any steady clock), so that a simulation
can drive it as well as the service; `lanes.py` is the driver of the service.

A job is one image.  It is admitted before it is decoded, with the most that it can need, so that
nothing is decoded that would be refused afterwards.  Then, in this order:

    DECODING -> WAITING -> (CLOSED ->) RUNNING -> DONE        DONE is also reached from everywhere
                                                              by `drop`: out of time, client left
A lane is one engine at work.  It takes a batch when it is free: images of one model and one padded
shape, at most max_batch, together at most batch_pixels (an image larger than that runs alone).
While all lanes work, batches that are full already are closed ahead, one for each lane at most, so
that their input can be put together meanwhile; what is not full stays open until a lane is free.

Order.  Within a class (interactive, bulk) the bucket whose first image is oldest goes first, and
within a bucket first come, first served.  Interactive goes before bulk, but after
INTERACTIVE_PER_BULK batches led by interactive while bulk waited, bulk leads one.  Hence bulk is
not starved: an image of class bulk that has b older ones of its class before it, and has waited for
batch_delay_s, sees at most b batches led by bulk and (b + 1) * INTERACTIVE_PER_BULK led by
interactive start before its own.  (Its bucket's first image, and that of every bucket with an older
first image, have waited at least as long, so the bucket with the oldest first image of the class
may be closed, and each batch led by bulk takes at least one of those b + 1 images.)
"""

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Generic

from clq_serve.jobs import (
    Batch,
    Held,
    Job,
    Policy,
    Priority,
    Reason,
    Refusal,
    Shape,
    State,
    W,
)
from clq_serve.pace import Pace

INTERACTIVE_PER_BULK = 4
BULK_SHARE = 0.75  # of each limit of the queue; the rest is for interactive only
# An image is admitted if it would be done in this part of its time: an estimate that is a little
# too good would otherwise fill the queue with images which all run out of time just before the end.
PART_OF_DEADLINE = 0.75
FULL = (Reason.COUNT, Reason.PIXELS)


@dataclass(slots=True)
class _Lane(Generic[W]):
    running: Batch[W] | None = None
    up: bool = True


class Scheduler(Generic[W]):
    """See the head of this file.  Not thread-safe: the driver has the lock."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.pace = Pace()
        self._lanes: list[_Lane[W]] = [_Lane() for _ in range(policy.lanes)]
        self._held = {priority: Held() for priority in Priority}
        self._decoding: set[Job[W]] = set()
        self._waiting: dict[Priority, dict[tuple[Hashable, Shape], deque[Job[W]]]] = {
            priority: {} for priority in Priority
        }
        self._closed: deque[Batch[W]] = deque()
        self._retries: deque[Job[W]] = deque()
        self._number = 0
        self._interactive_run = 0  # batches led by interactive since bulk last led or was absent

    # 1. into the queue

    def refusal(
        self, priority: Priority, pixels: int, bytes: int, deadline_s: float, now: float
    ) -> Refusal | None:
        """Why one more image of that size would not be admitted now; None if it would."""
        policy, held = self.policy, self.held()
        share = BULK_SHARE if priority is Priority.BULK else 1.0
        for name, limit, observed in (
            ("queue_images", policy.queue_images, held.images + 1),
            ("queue_pixels", policy.queue_pixels, held.pixels + pixels),
            ("queue_bytes", policy.queue_bytes, held.bytes + bytes),
        ):
            # The first image is admitted whatever its size, or a small limit would refuse for good.
            if observed > limit * share and held.images > 0:
                return Refusal(name, limit, observed)
        done_s, given_s = self.done_in_s(priority), deadline_s - now
        if held.images > 0 and done_s > PART_OF_DEADLINE * given_s:
            return Refusal("deadline", round(given_s, 3), round(done_s, 3))
        return None

    def admit(self, job: Job[W]) -> None:
        """Takes the job in; whoever calls has asked `refusal` under the same lock."""
        self._decoding.add(job)
        self._held[job.priority].add(job)

    def enqueue(
        self,
        job: Job[W],
        *,
        model: Hashable,
        shape: Shape,
        image_pixels: int,
        bytes: int,
        now: float,
        decode_s: float = 0.0,
    ) -> bool:
        """Whether the decoded job waits for a lane now; not if it was dropped meanwhile.

        decode_s  how long its decoding took, without waiting for its turn; 0 = it needed none
        """
        if decode_s > 0:
            self.pace.decoded(decode_s)
        if job.state is not State.DECODING:
            return False
        self._decoding.remove(job)
        self._held[job.priority].add(job, -1)
        job.model, job.shape, job.pixels, job.bytes = model, shape, shape[0] * shape[1], bytes
        job.image_pixels, job.number, job.queued_s = image_pixels, self._number, now
        self._number += 1
        job.state = State.WAITING
        self._held[job.priority].add(job)
        self._waiting[job.priority].setdefault(job.bucket, deque()).append(job)
        return True

    # 2. out of the queue without a result

    def drop(self, job: Job[W]) -> bool:
        """Whether the job was kept from the engine: its client left or its time is over.

        False if it runs already or is done; a running one still ends by `finish`, without a retry.
        """
        if job.state is State.DECODING:
            self._decoding.remove(job)
        elif job.state is State.WAITING:
            self._remove_waiting(job)
        elif job.state is State.CLOSED:
            self._remove_closed(job)
        else:
            job.wanted = False
            return False
        self._held[job.priority].add(job, -1)
        job.state = State.DONE
        return True

    def expire(self, now: float) -> list[Job[W]]:
        """The jobs dropped because their time is over, or because it will be before they are done.

        The second only while others wait: the engine is never idle for the sake of an estimate,
        and the estimate is renewed by what runs.  At the median pace, where running an image in
        vain and dropping one in vain are equally likely, and cost the same.
        """
        late = []
        count = sum(1 for _ in self._queued())
        for job in list(self._queued()):
            run_s = self.pace.usual_run_s(job.model, job.pixels) if count > 1 else 0.0
            if now + run_s >= job.deadline_s:
                self.drop(job)
                late.append(job)
                count -= 1
        return late

    def shut_down(self) -> list[Job[W]]:
        """Every job that no lane has taken, dropped."""
        jobs = list(chain(self._decoding, self._queued()))
        for job in jobs:
            self.drop(job)
        return jobs

    # 3. batches

    def take(self, lane: int, now: float) -> Batch[W] | None:
        """The next batch of a free lane; None if nothing may be closed yet.

        Call `expire` first, under the same lock.
        """
        state = self._lanes[lane]
        assert state.running is None, f"lane {lane} is at work"
        if not state.up:
            return None
        if self._retries:
            batch: Batch[W] | None = Batch([self._retries.popleft()], Reason.RETRY)
        elif self._closed:
            batch = self._closed.popleft()
        else:
            batch = self._form(now)
        if batch is None:
            return None
        others = any(lane.running for lane in self._lanes)
        for job in batch.jobs:
            self._held[job.priority].add(job, -1)
            job.state, job.taken_s = State.RUNNING, now
        batch.lane, batch.taken_s = lane, now
        batch.alone = len(batch.jobs) == 1 and not others and self.held().images == 0
        state.running = batch
        return batch

    def close_ahead(self, now: float) -> Batch[W] | None:
        """A full batch that the next free lane will run; its input can be put together meanwhile.

        None if none is full, if a lane is free, if one is closed ahead for each lane already, or if
        batches are of one image, which needs no putting together.
        """
        up = [lane for lane in self._lanes if lane.up]
        if self.policy.max_batch == 1 or len(self._closed) >= len(up):
            return None
        if any(lane.running is None for lane in up):
            return None
        batch = self._form(now, only_full=True)
        if batch is not None:
            self._closed.append(batch)
        return batch

    def wake_s(self) -> float | None:
        """When a batch may be closed that may not be closed now; None if that needs an event."""
        times = [
            self._ripe_s(bucket)
            for buckets in self._waiting.values()
            for bucket in buckets.values()
        ]
        return min(times, default=None)

    def finish(self, batch: Batch[W], now: float, *, failed: bool) -> list[Job[W]]:
        """The jobs whose fate is sealed: all, unless the batch failed and had several.

        Then those that are still wanted are retried one by one, before anything else and on
        whichever lane is free, and are not among the jobs returned.
        """
        state = self._lanes[batch.lane]
        assert state.running is batch
        state.running = None
        retried = [job for job in batch.jobs if failed and len(batch.jobs) > 1 and job.wanted]
        for job in retried:
            job.state = State.CLOSED
            self._held[job.priority].add(job)
        self._retries.extend(retried)
        decided = [job for job in batch.jobs if job not in retried]
        for job in decided:
            job.state = State.DONE
        if not failed:
            pixels = sum(job.pixels for job in batch.jobs)
            self.pace.ran(
                batch.jobs[0].model, len(batch.jobs), pixels, now - batch.taken_s, batch.alone
            )
        return decided

    # 4. lanes that break

    def lane_down(self, lane: int) -> list[Job[W]]:
        """The jobs that were on the lane, done without a result; it takes none until `lane_up`."""
        state = self._lanes[lane]
        jobs = state.running.jobs if state.running else []
        for job in jobs:
            job.state = State.DONE
        state.running, state.up = None, False
        return jobs

    def lane_up(self, lane: int) -> None:
        """The lane takes batches again."""
        self._lanes[lane].up = True

    # 5. what is known

    def held(self) -> Held:
        """Images, pixels and bytes that no lane has taken yet, those being decoded included."""
        one, two = self._held.values()
        return Held(one.images + two.images, one.pixels + two.pixels, one.bytes + two.bytes)

    def counts(self) -> dict[str, int]:
        """How many images are in each state before DONE."""
        return {
            "decoding": len(self._decoding),
            "waiting": sum(1 for _ in self._queued()),
            "running": sum(len(lane.running.jobs) for lane in self._lanes if lane.running),
        }

    def running(self, lane: int) -> Batch[W] | None:
        """What the lane works on."""
        return self._lanes[lane].running

    @property
    def lanes_up(self) -> int:
        return sum(lane.up for lane in self._lanes)

    def drain_rate(self) -> float:
        """Images a second that decoders and lanes finish when they are busy; 0 = unknown."""
        lane_s, decode_s = self._s_per_image()
        slowest_s = max(lane_s, decode_s)
        return 1 / slowest_s if lane_s > 0 else 0.0

    def done_in_s(self, priority: Priority) -> float:
        """When a new image would be done, estimated; 0 while nothing is known.

        Its own decoding and running, after what is ahead of it: of the decoders, which take images
        of both classes as they come, or of the lanes, whichever takes longer.
        """
        ahead = self._held[Priority.INTERACTIVE].images
        bulk = self._held[Priority.BULK].images
        if priority is Priority.BULK:
            ahead += bulk
        else:
            ahead += min(bulk, ahead // INTERACTIVE_PER_BULK)
        half_done = sum(len(lane.running.jobs) for lane in self._lanes if lane.running) / 2
        lane_s, decode_s = self._s_per_image()
        waits_s = max((ahead + half_done) * lane_s, len(self._decoding) * decode_s)
        return waits_s + self.pace.lane_s_per_image() + self.pace.decode_s_per_image()

    def _s_per_image(self) -> tuple[float, float]:
        """Seconds for one image of all lanes that are up, and of all decoders, when busy."""
        lane_s = self.pace.lane_s_per_image() / max(1, self.lanes_up)
        return lane_s, self.pace.decode_s_per_image() / self.policy.decoders

    # 6. private

    def _queued(self) -> Iterator[Job[W]]:
        yield from self._retries
        for batch in self._closed:
            yield from batch.jobs
        for buckets in self._waiting.values():
            for bucket in buckets.values():
                yield from bucket

    def _remove_waiting(self, job: Job[W]) -> None:
        buckets = self._waiting[job.priority]
        bucket = buckets[job.bucket]
        bucket.remove(job)
        if not bucket:
            del buckets[job.bucket]

    def _remove_closed(self, job: Job[W]) -> None:
        if job in self._retries:
            self._retries.remove(job)
            return
        batch = next(batch for batch in self._closed if job in batch.jobs)
        batch.jobs.remove(job)
        if not batch.jobs:
            self._closed.remove(batch)

    def _form(self, now: float, only_full: bool = False) -> Batch[W] | None:
        """The first batch in order that may be closed, taken out of the queue."""
        for priority in self._class_order():
            heads = sorted(self._waiting[priority].values(), key=lambda bucket: bucket[0].number)
            for bucket in heads:
                jobs, reason = self._closable(bucket[0], now)
                if reason is None:
                    continue
                if only_full and reason not in FULL:
                    return None  # it would be next: a full one must not overtake it for ever
                bulk_waits = bool(self._waiting[Priority.BULK])
                led = priority is Priority.INTERACTIVE and bulk_waits
                self._interactive_run = self._interactive_run + 1 if led else 0
                for job in jobs:
                    self._remove_waiting(job)
                    job.state = State.CLOSED
                return Batch(jobs, reason)
        return None

    def _class_order(self) -> tuple[Priority, Priority]:
        if self._interactive_run >= INTERACTIVE_PER_BULK:
            return Priority.BULK, Priority.INTERACTIVE
        return Priority.INTERACTIVE, Priority.BULK

    def _closable(self, head: Job[W], now: float) -> tuple[list[Job[W]], Reason | None]:
        """The batch that `head` leads, and why it may be closed now; None = it may not."""
        other = Priority.BULK if head.priority is Priority.INTERACTIVE else Priority.INTERACTIVE
        own = self._waiting[head.priority][head.bucket]
        rest = self._waiting[other].get(head.bucket, ())  # rides along where there is room
        jobs: list[Job[W]] = []
        pixels = 0
        for job in chain(own, rest):
            if jobs and pixels + job.pixels > self.policy.batch_pixels:
                return jobs, Reason.PIXELS
            jobs.append(job)
            pixels += job.pixels
            if len(jobs) == self.policy.max_batch:
                return jobs, Reason.COUNT
        if self.policy.batch_delay_s == 0:
            return jobs, Reason.IDLE
        if now >= head.queued_s + self.policy.batch_delay_s:
            return jobs, Reason.DELAY
        if now >= self._slack_s(jobs):
            return jobs, Reason.SLACK
        return jobs, None

    def _slack_s(self, jobs: list[Job[W]]) -> float:
        """When a batch of these jobs must start, at the latest, to meet all their deadlines."""
        run_s = self.pace.most_run_s(jobs[0].model, sum(job.pixels for job in jobs))
        return min(job.deadline_s for job in jobs) - run_s

    def _ripe_s(self, bucket: deque[Job[W]]) -> float:
        jobs, _ = self._closable(bucket[0], bucket[0].queued_s)
        return min(bucket[0].queued_s + self.policy.batch_delay_s, self._slack_s(jobs))
