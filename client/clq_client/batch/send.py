"""One run: jobs to the service, outcomes into the journal."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clq_client.async_client import AsyncClient
from clq_client.batch.feed import Feed
from clq_client.batch.journal import Found, Journal
from clq_client.batch.report import Report, Tally
from clq_client.batch.walk import Inputs
from clq_client.errors import ClqError
from clq_client.inputs import InputError
from clq_client.output import json_line
from clq_client.pace import Pace
from clq_client.results import Label, ModelInfo
from clq_client.run import Options, Outcome, detect_all

SYNC_EVERY_S = 0.5
SYNC_LINES = 256
MOST_UNSYNCED = 2048  # lines in memory while the disk is slow


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    connect     makes a client of (deadline_s, retries)
    model       name and version that were asked for; None: the service's default
    timeout_s   for one attempt
    patience_s  without any result, before the service counts as gone
    """

    inputs: Inputs
    options: Options
    connect: Callable[[float, int], AsyncClient]
    model: tuple[str | None, int | None]
    concurrency: int
    timeout_s: float
    patience_s: float

    @property
    def asked(self) -> dict[str, object]:
        """The options that are not the service's default, as the lines of the journal have them."""
        named = {
            "score": self.options.score,
            "iou": self.options.iou,
            "max": self.options.max,
            "classes": None if self.options.classes is None else list(self.options.classes),
        }
        return {name: value for name, value in named.items() if value is not None}


class Stopped(Exception):
    """A signal ended the run."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


async def ask_service(plan: Plan) -> tuple[list[ModelInfo], tuple[Label, ...]]:
    """The models that may answer, and the labels.  Raises ClqError: nothing there, no key, ..."""
    async with plan.connect(20.0, 4) as client:
        name, version = plan.model
        models = await client.models()
        labels = await client.labels()
    if name is None:
        return list(models[:1]), labels
    return [m for m in models if m.name == name and version in (None, m.version)], labels


def check_same(found: Found, plan: Plan, models: list[ModelInfo], path: Path) -> None:
    """Raises InputError where the rest would not fit to what is in the journal already."""
    result = found.a_result
    if result is None:
        return
    if result.get("asked") != plan.asked:
        raise InputError(
            f"{path}: was made with the options {result.get('asked')}, not {plan.asked};"
            " take another file for --out"
        )
    model = result["model"]
    if isinstance(model, dict) and model["digest"] not in [m.digest for m in models]:
        now = ", ".join(f"{m.name}/{m.version}" for m in models) or "not that model"
        raise InputError(
            f"{path}: was made with {model['name']}/{model['version']} {model['digest'][:19]},"
            f" the service now has {now}; take another file for --out"
        )


async def send(plan: Plan, journal: Journal, tally: Tally, report: Report) -> set[str]:
    """Sends all that is not in the journal; the digests of the models that answered.

    Raises ServiceGone, Stopped, and what `detect_all` does; what has ended by then is kept.
    """
    lines = _Lines(journal)
    pace = Pace(plan.concurrency, plan.patience_s)
    digests: set[str] = set()

    async def put(outcome: Outcome) -> None:
        await lines.put(json_line(outcome, {"asked": plan.asked}))
        tally.count(outcome)
        tally.at_once = int(pace.limit)
        if outcome.result is not None:
            digests.add(outcome.result.model.digest)
        report.advance(outcome)

    def waiting(error: ClqError) -> None:
        tally.at_once = int(pace.limit)
        report.waiting(error.detail)

    feed = Feed(plan.inputs.jobs(), journal.found.seen.add)
    async with plan.connect(plan.timeout_s, 0) as client:
        work = detect_all(client, feed, plan.options, pace, plan.concurrency, put, waiting)
        sending = asyncio.create_task(work)
        writing = asyncio.create_task(lines.write())
        try:
            with _signals(sending) as caught:
                await asyncio.wait({sending, writing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            feed.stop()
            sending.cancel()
            await asyncio.wait({sending})
            lines.end()
            await writing  # raises the OSError of a full disk
    if caught:
        raise Stopped(caught[0])
    sending.result()
    return digests


class _Lines:
    """Lines on their way to the journal, which are synced in groups."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._pending: list[str] = []
        self._ending = False
        self._full = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, line: str) -> None:
        self._pending.append(line)
        if len(self._pending) >= SYNC_LINES:
            self._full.set()
        while len(self._pending) >= MOST_UNSYNCED:
            self._room.clear()
            await self._room.wait()

    async def write(self) -> None:
        """Writes what is pending, every half second or when it is much, until `end`."""
        while not self._ending or self._pending:
            if not self._ending:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), SYNC_EVERY_S)
            self._full.clear()
            lines, self._pending = self._pending, []
            self._room.set()
            if lines:
                await asyncio.to_thread(self._journal.append, lines)

    def end(self) -> None:
        self._ending = True
        self._full.set()


@contextlib.contextmanager
def _signals(sending: asyncio.Task[None]) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM cancel the task; the signals that came."""
    loop = asyncio.get_running_loop()
    caught: list[int] = []

    def catch(number: int) -> None:
        caught.append(number)
        sending.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, catch, number)
    try:
        yield caught
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
