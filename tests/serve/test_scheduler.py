"""The scheduler under thousands of made-up schedules, on a clock that only the test moves.

`Simulation` is a driver like lanes.py without threads: images arrive, are decoded, leave or run out
of time; engines take a while, fail on poisoned images, and go down and up.  Every random decision
comes from one seed, so `python -m pytest -k "seed" ` repeats a failure exactly.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from clq_serve.jobs import Batch, Job, Policy, Priority, Reason, State
from clq_serve.scheduler import INTERACTIVE_PER_BULK, Scheduler

SHAPES = ((64, 64), (64, 128), (192, 192))
PACE_S = 1e-6  # seconds per pixel


@dataclass(eq=False)
class Image:
    """What the test knows of one image; `answers` is what came back for it."""

    name: int
    priority: Priority
    model: str
    shape: tuple[int, int]
    arrives_s: float
    decode_s: float
    deadline_s: float
    leaves_s: float
    poisoned: bool
    answers: list[str] = field(default_factory=list)
    left: bool = False
    job: Job | None = None


@dataclass(eq=False)
class Waiting:
    """What a ripe image of class bulk has seen go before it."""

    older: int
    led_by_bulk: int = 0
    led_by_interactive: int = 0


class Simulation:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        choice = self.random.choice
        self.policy = Policy(
            lanes=choice((1, 2, 3)),
            max_batch=choice((1, 2, 4, 8)),
            batch_pixels=choice((8_000, 40_000, 1_000_000)),
            batch_delay_s=choice((0.0, 0.0, 0.02, 0.1)),
            queue_images=choice((4, 16, 1000)),
            queue_pixels=choice((100_000, 10_000_000)),
            queue_bytes=choice((300_000, 30_000_000)),
            decoders=choice((1, 4)),
        )
        self.scheduler: Scheduler[Image] = Scheduler(self.policy)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.images = [self.image(name) for name in range(self.random.randint(3, 32))]
        self.refused = 0
        self.turn = [0] * self.policy.lanes  # raised when a lane goes down: its result is ignored
        self.last_number: dict[tuple, int] = {}
        self.bulk: dict[Job, Waiting] = {}
        self.batches: list[Batch] = []
        for image in self.images:
            self.at(image.arrives_s, lambda image=image: self.arrive(image))
        if self.random.random() < 0.2:
            self.at(self.random.uniform(0, 1), lambda: self.break_lane(0))

    def image(self, name: int) -> Image:
        rng = self.random
        arrives_s = rng.uniform(0, 1)
        return Image(
            name=name,
            priority=rng.choice((Priority.INTERACTIVE, Priority.INTERACTIVE, Priority.BULK)),
            model=rng.choice("ab"),
            shape=rng.choice(SHAPES),
            arrives_s=arrives_s,
            decode_s=rng.uniform(0, 0.02),
            deadline_s=arrives_s + rng.choice((0.03, 0.3, 30.0)),
            leaves_s=arrives_s + rng.uniform(0, 0.3) if rng.random() < 0.1 else float("inf"),
            poisoned=rng.random() < 0.05,
        )

    # 1. time

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when_s, next(self.order), what))

    def run(self) -> None:
        while self.events:
            when_s, _, what = heapq.heappop(self.events)
            self.now = max(self.now, when_s)
            what()
            self.pump()

    # 2. one image

    def arrive(self, image: Image) -> None:
        most = 192 * 192
        args = (image.priority, most, 4 * most, image.deadline_s, self.now)
        if self.scheduler.refusal(*args) is not None:
            self.refused += 1
            return
        image.job = Job(image, image.priority, image.deadline_s, most, 4 * most)
        self.scheduler.admit(image.job)
        self.check_limits()
        self.at(self.now + image.decode_s, lambda: self.decoded(image))
        timer_s = image.deadline_s + self.random.uniform(0, 0.05)  # timers fire late
        self.at(timer_s, lambda: self.give_up(image, "late"))
        if image.leaves_s < image.deadline_s:
            self.at(image.leaves_s, lambda: self.give_up(image, "left"))

    def decoded(self, image: Image) -> None:
        assert image.job is not None
        height, width = image.shape
        waits = self.scheduler.enqueue(
            image.job,
            model=image.model,
            shape=image.shape,
            image_pixels=height * width // 2,
            bytes=3 * height * width,
            now=self.now,
            decode_s=image.decode_s,
        )
        assert waits == (not image.answers)

    def give_up(self, image: Image, why: str) -> None:
        """What the waiting request does: it answers for itself, once."""
        assert image.job is not None
        image.left = True
        self.scheduler.drop(image.job)
        if not image.answers:
            image.answers.append(why)

    # 3. the lanes

    def pump(self) -> None:
        for lane in range(self.policy.lanes):
            if self.scheduler.running(lane) is None:
                for job in self.scheduler.expire(self.now):
                    assert not job.work.answers
                    job.work.answers.append("late")
                before = list(self.scheduler._closed)
                batch = self.scheduler.take(lane, self.now)
                if batch is not None:
                    if batch not in before:
                        self.formed(batch)
                    self.taken(batch, lane)
        while (batch := self.scheduler.close_ahead(self.now)) is not None:
            self.formed(batch)
        assert len(self.scheduler._closed) <= self.policy.lanes
        self.note_ripe()
        if self.policy.batch_delay_s == 0:
            idle = [i for i in range(self.policy.lanes) if self.scheduler.running(i) is None]
            up = self.scheduler.lanes_up == self.policy.lanes
            assert not (idle and up and self.scheduler.counts()["waiting"])
        wake_s = self.scheduler.wake_s()
        if wake_s is not None and wake_s > self.now:
            self.at(wake_s, lambda: None)

    def formed(self, batch: Batch) -> None:
        """The moment that decides the order: note who was overtaken."""
        if batch.reason is Reason.RETRY:
            return
        for job, seen in self.bulk.items():
            if job.state is State.WAITING:
                if batch.jobs[0].priority is Priority.BULK:
                    seen.led_by_bulk += 1
                else:
                    seen.led_by_interactive += 1
                assert seen.led_by_bulk <= seen.older
                assert seen.led_by_interactive <= INTERACTIVE_PER_BULK * (seen.older + 1)

    def note_ripe(self) -> None:
        waiting = [i.job for i in self.images if i.job and i.job.state is State.WAITING]
        for job in waiting:
            ripe = self.now >= job.queued_s + self.policy.batch_delay_s
            if job.priority is Priority.BULK and ripe and job not in self.bulk:
                older = [
                    j for j in waiting if j.priority is Priority.BULK and j.number < job.number
                ]
                self.bulk[job] = Waiting(len(older))

    def taken(self, batch: Batch, lane: int) -> None:
        """Everything that must be true of a batch when an engine gets it."""
        self.batches.append(batch)
        assert 1 <= len(batch.jobs) <= self.policy.max_batch
        pixels = sum(job.pixels for job in batch.jobs)
        assert len(batch.jobs) == 1 or pixels <= self.policy.batch_pixels
        assert len({(job.work.model, job.work.shape) for job in batch.jobs}) == 1
        for job in batch.jobs:
            assert job.deadline_s > self.now
            assert not job.work.left
            assert not job.work.answers
            if batch.reason is not Reason.RETRY:
                line = (job.priority, job.bucket)
                assert self.last_number.get(line, -1) < job.number, "first come, first served"
                self.last_number[line] = job.number
        if batch.alone:
            assert self.scheduler.counts() == {"decoding": 0, "waiting": 0, "running": 1}
        turn = self.turn[lane]
        run_s = pixels * PACE_S * self.random.uniform(0.5, 3)
        self.at(self.now + run_s, lambda: self.finished(batch, lane, turn))

    def finished(self, batch: Batch, lane: int, turn: int) -> None:
        if self.turn[lane] != turn:
            return
        failed = any(job.work.poisoned for job in batch.jobs)
        decided = self.scheduler.finish(batch, self.now, failed=failed)
        several = failed and len(batch.jobs) > 1
        assert decided == [job for job in batch.jobs if not several or job.work.left]
        for job in decided:
            if not job.work.answers:  # else its request has answered for itself
                job.work.answers.append("error" if failed else f"result of {job.work.name}")

    def break_lane(self, lane: int) -> None:
        self.turn[lane] += 1
        for job in self.scheduler.lane_down(lane):
            if not job.work.answers:
                job.work.answers.append("down")
        self.at(self.now + 0.2, lambda: self.scheduler.lane_up(lane))

    # 4. after each step, and at the end

    def check_limits(self) -> None:
        held = self.scheduler.held()
        if held.images > 1:
            assert held.images <= self.policy.queue_images
            assert held.pixels <= self.policy.queue_pixels
            assert held.bytes <= self.policy.queue_bytes

    def check_end(self) -> None:
        accepted = [image for image in self.images if image.job is not None]
        assert len(accepted) + self.refused == len(self.images)
        for image in accepted:
            assert len(image.answers) == 1, image
            if image.answers == ["error"]:
                assert image.poisoned
            elif image.answers[0].startswith("result"):
                assert image.answers == [f"result of {image.name}"]
                assert not image.poisoned
            elif image.answers == ["late"]:
                # either its time was over, or it would have been
                assert image.deadline_s < 10
        held = self.scheduler.held()
        assert (held.images, held.pixels, held.bytes) == (0, 0, 0)
        assert self.scheduler.counts() == {"decoding": 0, "waiting": 0, "running": 0}


def simulate(seeds: range) -> dict[Reason, int]:
    reasons = dict.fromkeys(Reason, 0)
    for seed in seeds:
        simulation = Simulation(seed)
        try:
            simulation.run()
            simulation.check_end()
        except AssertionError as err:
            raise AssertionError(f"seed {seed}: {err}") from err
        for batch in simulation.batches:
            reasons[batch.reason] += 1
    return reasons


def test_two_thousand_schedules_keep_every_promise() -> None:
    reasons = simulate(range(2000))
    assert all(reasons.values()), f"some way to close a batch was never taken: {reasons}"


@pytest.mark.slow
def test_thirty_thousand_more_schedules_do_too() -> None:
    simulate(range(2000, 32_000))


def policy(**changes: object) -> Policy:
    values = {
        "lanes": 1,
        "max_batch": 4,
        "batch_pixels": 10_000,
        "batch_delay_s": 0.0,
        "queue_images": 10,
        "queue_pixels": 10**9,
        "queue_bytes": 10**9,
    }
    return Policy(**(values | changes))


def waiting(
    scheduler: Scheduler[str],
    name: str,
    *,
    priority: Priority = Priority.INTERACTIVE,
    deadline_s: float = 100.0,
    shape: tuple[int, int] = (10, 10),
    now: float = 0.0,
) -> Job[str]:
    job = Job(name, priority, deadline_s, pixels=100, bytes=300)
    scheduler.admit(job)
    assert scheduler.enqueue(job, model="m", shape=shape, image_pixels=50, bytes=300, now=now)
    return job


def names(batch: Batch[str] | None) -> list[str]:
    return [] if batch is None else [job.work for job in batch.jobs]


def test_a_batch_waits_for_its_delay_and_is_closed_by_count_before() -> None:
    scheduler: Scheduler[str] = Scheduler(policy(batch_delay_s=0.5, max_batch=2))
    waiting(scheduler, "a")
    assert scheduler.take(0, 0.4) is None
    assert scheduler.wake_s() == 0.5
    waiting(scheduler, "b", now=0.4)
    batch = scheduler.take(0, 0.4)
    assert names(batch) == ["a", "b"]
    assert batch is not None
    assert batch.reason is Reason.COUNT
    assert batch.padding_waste == 0.5


def test_a_batch_is_closed_in_time_for_its_oldest_deadline() -> None:
    scheduler: Scheduler[str] = Scheduler(policy(batch_delay_s=10.0))
    scheduler.pace.ran("m", 1, 100, 2.0, alone=False)
    waiting(scheduler, "a", deadline_s=5.0)
    assert scheduler.wake_s() == 3.0  # 5 s less the 2 s that it will run
    assert scheduler.take(0, 2.9) is None
    batch = scheduler.take(0, 3.0)
    assert batch is not None
    assert batch.reason is Reason.SLACK


def test_another_shape_is_not_held_up_by_one_that_waits_for_its_delay() -> None:
    scheduler: Scheduler[str] = Scheduler(policy(batch_delay_s=0.5, max_batch=2))
    waiting(scheduler, "a")
    waiting(scheduler, "b", shape=(20, 20))
    waiting(scheduler, "c", shape=(20, 20))
    assert names(scheduler.take(0, 0.1)) == ["b", "c"]


def test_an_image_larger_than_the_pixel_budget_runs_alone() -> None:
    scheduler: Scheduler[str] = Scheduler(policy(batch_pixels=150))
    waiting(scheduler, "a", shape=(20, 20))
    waiting(scheduler, "b", shape=(20, 20))
    batch = scheduler.take(0, 0.0)
    assert batch is not None
    assert (names(batch), batch.reason) == (["a"], Reason.PIXELS)


def test_bulk_rides_along_where_there_is_room() -> None:
    scheduler: Scheduler[str] = Scheduler(policy())
    waiting(scheduler, "b", priority=Priority.BULK)
    waiting(scheduler, "i")
    assert names(scheduler.take(0, 0.0)) == ["i", "b"]


def test_an_image_that_would_be_late_makes_room_for_one_that_would_not() -> None:
    scheduler: Scheduler[str] = Scheduler(policy())
    scheduler.pace.ran("m", 1, 100, 2.0, alone=False)
    hopeless = waiting(scheduler, "a", deadline_s=1.9)
    waiting(scheduler, "b", deadline_s=9.0)
    assert scheduler.expire(0.0) == [hopeless]
    assert names(scheduler.take(0, 0.0)) == ["b"]


def test_an_image_that_would_be_late_still_runs_when_nobody_else_waits() -> None:
    """Or a pace that was measured too slow would never be measured again."""
    scheduler: Scheduler[str] = Scheduler(policy())
    scheduler.pace.ran("m", 1, 100, 2.0, alone=False)
    waiting(scheduler, "a", deadline_s=1.9)
    assert scheduler.expire(0.0) == []
    assert names(scheduler.take(0, 0.0)) == ["a"]


def test_bulk_cannot_fill_the_part_of_the_queue_that_is_for_interactive() -> None:
    scheduler: Scheduler[str] = Scheduler(policy(queue_images=4))
    for index in range(3):
        waiting(scheduler, str(index), priority=Priority.BULK)
    assert scheduler.refusal(Priority.BULK, 1, 1, 100.0, 0.0) is not None
    assert scheduler.refusal(Priority.INTERACTIVE, 1, 1, 100.0, 0.0) is None


def test_an_image_is_refused_when_it_would_not_be_done_by_its_deadline() -> None:
    scheduler: Scheduler[str] = Scheduler(policy(lanes=2))
    scheduler.pace.ran("m", 1, 100, 2.0, alone=False)
    for index in range(4):
        waiting(scheduler, str(index))
    assert scheduler.drain_rate() == 1.0  # two lanes, two seconds each
    assert scheduler.done_in_s(Priority.INTERACTIVE) == 6.0  # four before it, and itself
    assert scheduler.refusal(Priority.INTERACTIVE, 1, 1, 8.1, 0.0) is None
    refusal = scheduler.refusal(Priority.INTERACTIVE, 1, 1, 7.9, 0.0)  # 6 s are 76 % of it
    assert refusal is not None
    assert (refusal.limit_name, refusal.limit, refusal.observed) == ("deadline", 7.9, 6.0)


def test_a_backlog_of_the_decoders_counts_as_well() -> None:
    """On a GPU decoding is what takes long, and the queue of the lanes stays empty."""
    scheduler: Scheduler[str] = Scheduler(policy(lanes=1, decoders=2))
    scheduler.pace.ran("m", 1, 100, 0.01, alone=False)
    scheduler.pace.decoded(1.0)
    for index in range(6):
        scheduler.admit(Job(str(index), Priority.INTERACTIVE, 100.0, pixels=100, bytes=300))
    assert scheduler.drain_rate() == 2.0
    assert scheduler.done_in_s(Priority.INTERACTIVE) == pytest.approx(3.0 + 1.0 + 0.01)
    refusal = scheduler.refusal(Priority.INTERACTIVE, 1, 1, 5.0, 0.0)
    assert refusal is not None
    assert refusal.limit_name == "deadline"


@pytest.mark.parametrize("size", [2, 3])
def test_a_failed_batch_is_retried_one_by_one_before_anything_else(size: int) -> None:
    scheduler: Scheduler[str] = Scheduler(policy(max_batch=size))
    for index in range(size + 1):
        waiting(scheduler, str(index))
    batch = scheduler.take(0, 0.0)
    assert batch is not None
    assert scheduler.finish(batch, 1.0, failed=True) == []
    order = []
    while (batch := scheduler.take(0, 2.0)) is not None:
        order.append((names(batch), batch.reason))
        scheduler.finish(batch, 2.0, failed=False)
    retries = [([str(i)], Reason.RETRY) for i in range(size)]
    assert order == [*retries, ([str(size)], Reason.IDLE)]
