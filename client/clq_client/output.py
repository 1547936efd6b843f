"""How outcomes are shown and stored: tables, plain lines, JSON lines, progress, failures."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from clq_client.results import DetectResult
from clq_client.run import Outcome


def printable(value: object) -> str:
    """Text that is safe on a terminal and in UTF-8, whatever a file or a label is called."""
    return "".join(c if c.isprintable() else "�" for c in str(value))


class Tables:
    """Shows each result on stdout: a table on a terminal, plain lines anywhere else."""

    def __init__(self) -> None:
        self._console = Console() if sys.stdout.isatty() else None

    def show(self, outcome: Outcome) -> None:
        if outcome.result is None:
            return
        if self._console is None:
            sys.stdout.write("\n".join(plain_lines(outcome.job.key, outcome.result)) + "\n")
        else:
            self._console.print(_table(outcome.job.key, outcome.result))


def plain_lines(image: str, result: DetectResult) -> list[str]:
    """A headline, then one line for each detection: score, label, x1 y1 x2 y2."""
    width = max((len(d.label) for d in result.detections), default=0)
    return [_headline(image, result)] + [
        f"  {d.score:.3f}  {printable(d.label):<{width}}  "
        + " ".join(f"{side:8.1f}" for side in d.box)
        for d in result.detections
    ]


class JsonLines:
    """A file with one JSON line for each outcome; takes its name when the run has ended.

    Also a run that was stopped keeps the lines it has.  Any other exception leaves no file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Self:
        self._file: TextIO = self._beside.open("x", encoding="utf-8")
        return self

    def write(self, outcome: Outcome) -> None:
        self._file.write(json_line(outcome) + "\n")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
            if kind is None or issubclass(kind, KeyboardInterrupt):
                self._beside.replace(self._path)
        finally:
            self._beside.unlink(missing_ok=True)


def json_line(outcome: Outcome, more: Mapping[str, object] = MappingProxyType({})) -> str:
    """{"path", "ok": true, members of the result} or {"path", "ok": false, "error"}, and `more`.

    An image whose annotated copy alone failed is ok: its detections are complete.
    """
    line: dict[str, object] = {"path": outcome.job.key, "ok": outcome.result is not None}
    line |= more
    if outcome.job.frame is not None:
        line["frame"] = asdict(outcome.job.frame)
    if outcome.result is not None:
        line |= outcome.result.to_dict()
        if outcome.failure is not None:
            line["not_annotated"] = outcome.failure.reason
    elif outcome.failure is not None:
        line["error"] = outcome.failure.error
    return json.dumps(line, allow_nan=False)


class ProgressBar:
    """Images done, images per second and the time left, on stderr if that is a terminal."""

    def __init__(self, total: int, *, shown: bool) -> None:
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} img/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (shown and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task("images", total=total, rate=0.0)
        self._start_s = time.monotonic()
        self._done = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def advance(self) -> None:
        self._done += 1
        rate = self._done / max(time.monotonic() - self._start_s, 1e-6)
        self._bar.update(self._task, advance=1, rate=rate)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def summary(self) -> str:
        """E.g. "40 images in 2.1 s (19.0 img/s)"."""
        took_s = max(time.monotonic() - self._start_s, 1e-6)
        return (
            f"{count_of(self._done, 'image')} in {took_s:.1f} s ({self._done / took_s:.1f} img/s)"
        )


def failure_lines(failed: Sequence[Outcome], total: int) -> list[str]:
    """A headline and one line for each failure."""
    lines = [f"{len(failed)} of {count_of(total, 'image')} failed:"]
    for outcome in failed:
        reason = outcome.failure.reason if outcome.failure else ""
        lines.append(f"  {printable(outcome.job.key)}: {printable(reason)}")
    return lines


def count_of(number: int, noun: str) -> str:
    """E.g. "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _headline(image: str, result: DetectResult) -> str:
    size = f"{result.image.width}x{result.image.height}"
    found = count_of(len(result.detections), "detection")
    return f"{printable(image)}  {size}  {found}  {result.timing_ms.total:.0f} ms"


def _table(image: str, result: DetectResult) -> Table:
    table = Table(title=Text(_headline(image, result)), title_justify="left")
    table.add_column("score", justify="right")
    table.add_column("label")
    for side in ("x1", "y1", "x2", "y2"):
        table.add_column(side, justify="right")
    for d in result.detections:
        sides = (f"{side:.1f}" for side in d.box)
        table.add_row(f"{d.score:.3f}", Text(printable(d.label)), *sides)
    return table
