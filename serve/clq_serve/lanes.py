"""Drives the scheduler: one engine thread for each lane, futures for those who wait.

The event loop admits, enqueues and drops; the threads take batches, run them and resolve the
futures; one lock guards the scheduler.  A thread takes its next batch itself, so that between two
batches no lane waits for a turn of the event loop.

A lane is out of order when its engine has not answered for engine_timeout_s, or has failed
FAILURES times in a row.  Then its images are answered with EngineDown, its engine
is rebuilt, at most REBUILDS times without a success in between, and the service is not ready until
that is done.  A thread that hangs inside an engine cannot be ended: it is left behind.
"""

import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from clq_serve.detector import Detections, Prepared, StageTimes
from clq_serve.errors import EngineDown, EngineError, Unavailable
from clq_serve.jobs import Batch, Job, Policy, Priority, State
from clq_serve.lane_work import (
    Ahead,
    Answer,
    Work,
    answer_down,
    batch_images,
    batch_input,
    batch_pixels,
    late,
    resolve,
)
from clq_serve.loading import LoadedModel
from clq_serve.scheduler import Scheduler

log = logging.getLogger(__name__)

FAILURES = 3
REBUILDS = 3
BACKOFF_S = 1.0  # before the second rebuild; doubles
LEFT_BEHIND = 8  # threads that may hang in the engines of one lane before it is given up
RETRY_AFTER_MAX_S = 60
RECENT = 100  # batches that are remembered

_REFUSED_FULL = "the queue is full ({0.limit_name}={0.limit:g}); try again later"
_REFUSED = {
    "deadline": "an image would take about {0.observed:g} s now, and has {0.limit:g} s; try later"
}


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One call of an engine that is over; padding_waste in [0, 1)."""

    ended_s: float
    model: str
    shape: tuple[int, int]
    size: int
    padding_waste: float
    reason: str
    lane: int
    wide: bool
    queue_s: float  # the longest of its images
    infer_s: float
    result: str


@dataclass(slots=True)
class _Lane:
    """What is known of one lane; `turn` is raised when its thread is replaced."""

    index: int
    turn: int = 0
    failures: dict[tuple[int, bool], int] = field(default_factory=dict)
    broken: tuple[LoadedModel, bool] | None = None
    trouble: str = ""
    rebuilds: int = 0
    left_behind: int = 0
    dead: bool = False


Outcome = tuple[list[Detections], StageTimes] | Exception


class Lanes:
    """The engine threads of a service and the queue before them."""

    def __init__(
        self,
        policy: Policy,
        engine_timeout_s: float,
        count_batch: Callable[[int, float], None] = lambda size, waste: None,
    ) -> None:
        self._recent: deque[BatchRecord] = deque(maxlen=RECENT)
        self._scheduler: Scheduler[Work] = Scheduler(policy)
        self._engine_timeout_s = engine_timeout_s
        self._count_batch = count_batch
        self._changed = threading.Condition(threading.Lock())
        self._closing = threading.Event()
        self._assembler = ThreadPoolExecutor(1, thread_name_prefix="assemble")
        self._lanes = [_Lane(index) for index in range(policy.lanes)]
        self._threads = [self._start(lane) for lane in self._lanes]
        self._watch = threading.Thread(target=self._watch_lanes, name="lane-watch", daemon=True)
        self._watch.start()

    # 1. the event loop's side

    def check_room(self, priority: Priority, deadline_s: float) -> None:
        """Raises Unavailable if an image of any size would be refused: asked before it is read."""
        with self._changed:
            self._raise_if_refused(priority, 0, 0, deadline_s)

    def admit(
        self, work: Work, *, priority: Priority, pixels: int, bytes: int, deadline_s: float
    ) -> Job[Work]:
        """The job of an image that will be decoded now; pixels, bytes: the most it can hold.

        Raises Unavailable if the queue is full, or so long that the deadline cannot be met.
        """
        job = Job(work, priority, deadline_s, pixels, bytes)
        with self._changed:
            self._raise_if_refused(priority, pixels, bytes, deadline_s)
            self._scheduler.admit(job)
        return job

    def enqueue(self, job: Job[Work], prepared: Prepared, decode_s: float = 0.0) -> None:
        """Gives the image, decoded in decode_s, to the lanes; its future will be resolved."""
        job.work.prepared = prepared
        geometry = prepared.geometry
        with self._changed:
            self._scheduler.enqueue(
                job,
                model=id(job.work.model),  # the job keeps the model alive, the scheduler must not
                shape=(geometry.padded_height, geometry.padded_width),
                image_pixels=geometry.resized_height * geometry.resized_width,
                bytes=prepared.pixels.nbytes,
                now=time.monotonic(),
                decode_s=decode_s,
            )
            self._close_ahead()
            self._changed.notify()

    def leave(self, job: Job[Work]) -> State:
        """How far the job had come when nobody waited for it any more; it goes no further."""
        with self._changed:
            state = job.state
            self._scheduler.drop(job)
            return state

    def close(self, timeout_s: float) -> None:
        """Answers what waits with Unavailable, lets the engines finish, ends the threads."""
        with self._changed:
            self._closing.set()
            waiting = self._scheduler.shut_down()
            self._changed.notify_all()
        resolve([(job.work.answer, _stopping()) for job in waiting])
        give_up_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, give_up_s - time.monotonic()))
        with self._changed:
            for lane in self._lanes:
                lane.turn += 1
            hung = [job for lane in self._lanes for job in self._scheduler.lane_down(lane.index)]
        resolve([(job.work.answer, _stopping()) for job in hung])
        self._assembler.shutdown(cancel_futures=True)

    # 2. what is known

    def troubles(self) -> list[str]:
        """One sentence for each lane that is out of order; none = healthy."""
        with self._changed:
            return [lane.trouble for lane in self._lanes if lane.trouble]

    @property
    def lost(self) -> int:
        """How many lanes were given up for good."""
        return sum(lane.dead for lane in self._lanes)

    @property
    def dead(self) -> bool:
        """Whether no lane will ever answer again."""
        return all(lane.dead for lane in self._lanes)

    def held(self) -> tuple[int, int, int]:
        """Images, pixels and bytes that no lane has taken yet."""
        with self._changed:
            held = self._scheduler.held()
        return held.images, held.pixels, held.bytes

    def state(self) -> dict[str, int]:
        """How many images are being decoded, wait and run."""
        with self._changed:
            return self._scheduler.counts()

    def recent_batches(self) -> list[BatchRecord]:
        """The last batches, newest first."""
        with self._changed:
            return list(reversed(self._recent))

    def drain_rate(self) -> float:
        """Images a second, measured; 0 = nothing has run yet."""
        with self._changed:
            return self._scheduler.drain_rate()

    def retry_after_s(self) -> int:
        """When the queue will have drained, in whole seconds, >= 1, different for each who asks."""
        with self._changed:
            return self._retry_after_s()

    # 3. a lane's thread

    def _start(self, lane: _Lane) -> threading.Thread:
        name = f"engine-{lane.index}"
        thread = threading.Thread(target=self._work, args=(lane, lane.turn), name=name, daemon=True)
        thread.start()
        return thread

    def _work(self, lane: _Lane, turn: int) -> None:
        """The thread.  Engines raise inside `_run`; whatever gets here is a fault of this file, and
        must be seen by /readyz and answered rather than end a thread in silence.
        """
        try:
            self._serve(lane, turn)
        except Exception:
            log.exception("lane %d: its thread ends", lane.index)
            with self._changed:
                lane.dead, lane.trouble = True, f"lane {lane.index}: its thread has ended"
                unanswered = self._scheduler.lane_down(lane.index)
                if self.dead:
                    unanswered += self._scheduler.shut_down()
            answer_down(unanswered)

    def _serve(self, lane: _Lane, turn: int) -> None:
        while not lane.broken or self._rebuild(lane, turn):
            batch = self._next(lane, turn)
            if batch is None or not self._settle(lane, turn, batch, self._run(lane, batch)):
                return
            del batch  # it holds its model, which may have to go while this thread waits

    def _next(self, lane: _Lane, turn: int) -> Batch[Work] | None:
        """The next batch of the lane, when there is one; None = the thread has to end."""
        with self._changed:
            while not self._closing.is_set() and lane.turn == turn:
                now = time.monotonic()
                self._answer_late(self._scheduler.expire(now))
                batch = self._scheduler.take(lane.index, now)
                if batch is not None:
                    self._close_ahead()
                    self._changed.notify()  # perhaps another lane waits, and there is more
                    return batch
                wake_s = self._scheduler.wake_s()
                self._changed.wait(None if wake_s is None else max(0.0, wake_s - now))
        return None

    def _run(self, lane: _Lane, batch: Batch[Work]) -> Outcome:
        """The results of the batch; every exception of an engine ends here, not the thread."""
        works = [job.work for job in batch.jobs]
        model = works[0].model
        wide = model.wide if batch.alone else None
        detector = model.lanes[lane.index] if wide is None else wide
        try:
            options = [work.options for work in works]
            found, times = detector.detect_batch(batch_images(batch), options, batch_input(batch))
            if len(found) != len(works):
                raise EngineError(f"{len(found)} results for {len(works)} images")
        except Exception as err:
            if len(works) > 1:
                log.warning(
                    "a batch of %d images failed; each runs alone", len(works), exc_info=err
                )
            return err
        return found, times

    def _settle(self, lane: _Lane, turn: int, batch: Batch[Work], outcome: Outcome) -> bool:
        """Resolves the futures; False if the lane was given up while the engine ran."""
        now = time.monotonic()
        failed = isinstance(outcome, Exception)
        with self._changed:
            if lane.turn != turn:
                return False
            decided = self._scheduler.finish(batch, now, failed=failed)
            given_up = self._count_failure(lane, batch, failed)
            self._record(batch, now, outcome)
        if isinstance(outcome, Exception):
            resolve([(job.work.answer, outcome) for job in decided])
        else:
            found, times = outcome
            resolve(
                [
                    (
                        job.work.answer,
                        Answer(
                            one,
                            job.taken_s - job.queued_s,
                            times.infer_ms / 1e3,
                            times.post_ms / 1e3,
                            len(decided),
                        ),
                    )
                    for job, one in zip(decided, found, strict=True)
                ]
            )
        answer_down(given_up)
        return True

    def _count_failure(self, lane: _Lane, batch: Batch[Work], failed: bool) -> list[Job[Work]]:
        """The jobs that go down with the lane, if this failure was one too many."""
        model = batch.jobs[0].work.model
        engine = (id(model), batch.alone and model.wide is not None)
        if not failed:
            lane.failures.pop(engine, None)
            lane.rebuilds = 0
            return []
        lane.failures[engine] = lane.failures.get(engine, 0) + 1
        if lane.failures[engine] < FAILURES:
            return []
        del lane.failures[engine]
        lane.broken = (model, engine[1])
        lane.trouble = (
            f"lane {lane.index}: the engine of {model.name}/{model.version} failed {FAILURES} "
            "times in a row"
        )
        log.error("%s; it is rebuilt", lane.trouble)
        return self._scheduler.lane_down(lane.index)

    def _rebuild(self, lane: _Lane, turn: int) -> bool:
        """Whether the lane has a working engine again; blocks until that is decided."""
        assert lane.broken is not None
        model, wide = lane.broken
        while lane.rebuilds < REBUILDS and lane.left_behind < LEFT_BEHIND:
            if self._closing.wait(BACKOFF_S * (2**lane.rebuilds - 1)):
                return False
            lane.rebuilds += 1
            try:
                model.rebuild_lane(None if wide else lane.index)
            except Exception:
                log.exception("%s; rebuild %d of %d failed", lane.trouble, lane.rebuilds, REBUILDS)
                continue
            with self._changed:
                if lane.turn != turn:
                    return False
                log.warning("%s; it was rebuilt", lane.trouble)
                lane.broken, lane.trouble = None, ""
                self._scheduler.lane_up(lane.index)
            return True
        with self._changed:
            lane.broken, lane.dead = None, True
            lane.trouble += "; it was given up"
            unanswered = self._scheduler.shut_down() if self.dead else []
        log.error("%s after %d rebuilds", lane.trouble, lane.rebuilds)
        answer_down(unanswered)
        return False

    # 4. engines that hang

    def _watch_lanes(self) -> None:
        while not self._closing.wait(self._engine_timeout_s / 10):
            for lane in self._lanes:
                batch = self._scheduler.running(lane.index)
                if batch is None or time.monotonic() - batch.taken_s < self._engine_timeout_s:
                    continue
                self._replace_hung(lane, batch)

    def _replace_hung(self, lane: _Lane, batch: Batch[Work]) -> None:
        model = batch.jobs[0].work.model
        with self._changed:
            if self._scheduler.running(lane.index) is not batch or self._closing.is_set():
                return  # it has answered just now
            lane.trouble = (
                f"lane {lane.index}: the engine of {model.name}/{model.version} has not answered "
                f"for {self._engine_timeout_s:g} s"
            )
            lane.broken = (model, batch.alone and model.wide is not None)
            lane.left_behind += 1
            self._record(batch, time.monotonic(), EngineDown("hung"))
            lane.turn += 1  # whatever its thread still does is ignored
            unanswered = self._scheduler.lane_down(lane.index)
        log.error("%s; it is rebuilt", lane.trouble)
        answer_down(unanswered)
        self._threads[lane.index] = self._start(lane)

    # 5. under the lock

    def _raise_if_refused(
        self, priority: Priority, pixels: int, bytes: int, deadline_s: float
    ) -> None:
        if self._closing.is_set():
            raise _stopping()
        now = time.monotonic()
        if self._scheduler.lanes_up == 0:
            trouble = "; ".join(lane.trouble for lane in self._lanes)
            raise EngineDown(f"no engine works now: {trouble}", extra={"retry_after": 5})
        refusal = self._scheduler.refusal(priority, pixels, bytes, deadline_s, now)
        if refusal is not None:
            raise Unavailable(
                _REFUSED.get(refusal.limit_name, _REFUSED_FULL).format(refusal),
                extra={
                    "limit_name": refusal.limit_name,
                    "limit": refusal.limit,
                    "observed": refusal.observed,
                    "retry_after": self._retry_after_s(),
                },
            )

    def _retry_after_s(self) -> int:
        rate = self._scheduler.drain_rate()
        wait_s = self._scheduler.held().images / rate if rate > 0 else 1.0
        spread_s = max(1.0, wait_s) * random.uniform(1.0, 1.5)  # or they all come back together
        return min(RETRY_AFTER_MAX_S, math.ceil(spread_s))

    def _close_ahead(self) -> None:
        while (batch := self._scheduler.close_ahead(time.monotonic())) is not None:
            batch.ahead = Ahead(
                list(batch.jobs), self._assembler.submit(np.stack, batch_pixels(batch))
            )

    def _answer_late(self, jobs: list[Job[Work]]) -> None:
        resolve([(job.work.answer, late(job.work.timeout_s, State.WAITING)) for job in jobs])

    def _record(self, batch: Batch[Work], now: float, outcome: Outcome) -> None:
        model = batch.jobs[0].work.model
        failed = isinstance(outcome, Exception)
        self._count_batch(len(batch.jobs), batch.padding_waste)
        self._recent.append(
            BatchRecord(
                ended_s=now,
                model=f"{model.name}/{model.version}",
                shape=batch.jobs[0].shape,
                size=len(batch.jobs),
                padding_waste=batch.padding_waste,
                reason=batch.reason,
                lane=batch.lane,
                wide=batch.alone and model.wide is not None,
                queue_s=max(batch.taken_s - job.queued_s for job in batch.jobs),
                infer_s=now - batch.taken_s,
                result=type(outcome).__name__ if failed else "ok",
            )
        )


def _stopping() -> Unavailable:
    return Unavailable("the service is stopping", code="draining", extra={"retry_after": 1})
