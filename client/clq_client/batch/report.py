"""What a person or a log sees of a run, on stderr: a bar, lines, or JSON."""

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from clq_client.output import count_of, printable
from clq_client.run import Outcome

SHOWN_FAILURES = 20
_LINE_EVERY_S = 30.0
_JSON_EVERY_S = 10.0
_STILL_S = 2.0  # without an answer, before the bar says what it waits for


class Tally:
    """The numbers of a run; `total` is None until the images have been counted."""

    def __init__(self, done_before: int, failed_before: int) -> None:
        self.done_before = done_before
        self.failed_before = failed_before
        self.done = 0
        self.failed = 0
        self.not_annotated = 0
        self.total: int | None = None
        self.at_once = 0
        self.shown: list[str] = []  # the first failures, in full
        self.reasons: Counter[str] = Counter()
        self.start_s = time.monotonic()
        self._ticks: list[tuple[float, int]] = []

    def count(self, outcome: Outcome) -> None:
        self.done += 1
        if outcome.failure is None:
            return
        if outcome.result is None:
            self.failed += 1
        else:
            self.not_annotated += 1
        kind = str(outcome.failure.error["code"] or outcome.failure.error["type"])
        self.reasons[kind] += 1
        if len(self.shown) < SHOWN_FAILURES:
            reason = printable(outcome.failure.reason)
            self.shown.append(f"  {printable(outcome.job.key)}: {reason}")

    @property
    def rate(self) -> float:
        """Images a second over the last half minute."""
        now_s = time.monotonic()
        self._ticks = [tick for tick in self._ticks if now_s - tick[0] < 30]
        if not self._ticks or now_s - self._ticks[-1][0] > 0.2:
            self._ticks.append((now_s, self.done))
        then_s, then = self._ticks[0] if len(self._ticks) > 1 else (self.start_s, 0)
        return (self.done - then) / max(now_s - then_s, 1e-6)

    def left(self) -> str:
        """The time that is left, as h:mm:ss; "?" while that is not known."""
        rate = self.rate
        if self.total is None or rate <= 0:
            return "?"
        seconds = int(max(self.total - self.done_before - self.done, 0) / rate)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


class Report(Protocol):
    """Told about a run while it goes on."""

    def start(self) -> None: ...
    def advance(self, outcome: Outcome) -> None: ...
    def waiting(self, reason: str) -> None: ...
    def stop(self) -> None: ...


class Bar:
    """A progress bar for a terminal."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=Console(stderr=True),
            refresh_per_second=5,
        )
        self._task = self._bar.add_task("images", total=None, numbers="")
        self._reason = ""
        self._advanced_s = time.monotonic()

    def start(self) -> None:
        self._bar.start()

    def advance(self, outcome: Outcome) -> None:
        self._reason = ""
        self._advanced_s = time.monotonic()
        self._show()

    def waiting(self, reason: str) -> None:
        self._reason = reason
        self._show()

    def stop(self) -> None:
        self._show()
        self._bar.stop()

    def _show(self) -> None:
        tally = self._tally
        failed = tally.failed + tally.failed_before
        numbers = f"{tally.rate:.1f} img/s  left {tally.left()}  at once {tally.at_once}"
        numbers += f"  [red]failed {failed}[/red]" if failed else ""
        if self._reason and time.monotonic() - self._advanced_s > _STILL_S:
            numbers = f"[yellow]waiting: {escape(printable(self._reason)[:60])}[/yellow]"
        done = tally.done_before + tally.done
        self._bar.update(self._task, completed=done, total=tally.total, numbers=numbers)


class Lines:
    """A line of text now and then, where stderr is no terminal."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._next_s = time.monotonic() + _LINE_EVERY_S

    def start(self) -> None:
        pass

    def advance(self, outcome: Outcome) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _LINE_EVERY_S
            tally = self._tally
            done = tally.done_before + tally.done
            of = "" if tally.total is None else f" of {tally.total}"
            text = f"{done}{of} images, {tally.rate:.1f} img/s, left {tally.left()}"
            print(f"{text}, {tally.failed + tally.failed_before} failed", file=sys.stderr)

    def waiting(self, reason: str) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _LINE_EVERY_S
            print(f"waiting: {reason}", file=sys.stderr)

    def stop(self) -> None:
        pass


class Quiet:
    """Nothing."""

    def start(self) -> None:
        pass

    def advance(self, outcome: Outcome) -> None:
        pass

    def waiting(self, reason: str) -> None:
        pass

    def stop(self) -> None:
        pass


class JsonLog:
    """JSON lines: start, failed, progress and waiting now and then, end."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._next_s = time.monotonic() + _JSON_EVERY_S

    def start(self) -> None:
        tally = self._tally
        log_json("start", {"done": tally.done_before, "failed": tally.failed_before})

    def advance(self, outcome: Outcome) -> None:
        if outcome.failure is not None:
            log_json("failed", {"path": outcome.job.key} | outcome.failure.error)
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _JSON_EVERY_S
            self._log("progress")

    def waiting(self, reason: str) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _JSON_EVERY_S
            log_json("waiting", {"reason": reason})

    def stop(self) -> None:
        self._log("end")

    def _log(self, event: str) -> None:
        tally = self._tally
        members = {
            "done": tally.done_before + tally.done,
            "total": tally.total,
            "failed": tally.failed_before + tally.failed,
            "per_second": round(tally.rate, 2),
            "at_once": tally.at_once,
        }
        log_json(event, members)


def log_json(event: str, members: Mapping[str, object]) -> None:
    """Writes one event to stderr."""
    line: dict[str, object] = {"time": datetime.now(UTC).isoformat(), "event": event}
    print(json.dumps(line | dict(members)), file=sys.stderr)


def summary(tally: Tally, out: object) -> list[str]:
    """What is told at the end: how many images, and the failures with their reasons."""
    took_s = time.monotonic() - tally.start_s
    rate = tally.done / max(took_s, 1e-6)
    before = f", {tally.done_before} before" if tally.done_before else ""
    lines = [f"{count_of(tally.done, 'image')} in {took_s:.1f} s ({rate:.1f} img/s){before}: {out}"]
    if tally.shown:
        kinds = ", ".join(f"{number} {kind}" for kind, number in tally.reasons.most_common())
        total = tally.failed + tally.not_annotated
        lines += [f"{total} of {count_of(tally.done, 'image')} failed ({kinds}):", *tally.shown]
        if total > len(tally.shown):
            lines.append(f"  ... and {total - len(tally.shown)} more")
    if tally.failed_before:
        told = f"{count_of(tally.failed_before, 'image')} failed in earlier runs"
        lines.append(f"{told}; --retry-failed sends them again")
    return lines
