"""clq-client batch.

Exit codes: 0 every image has its result; 1 some images failed; 2 nothing could be done, or none of
the rest; 3 the service was gone for too long; 130 and 143 stopped by Ctrl-C or SIGTERM.  After 2,
3, 130 and 143 the same command goes on where it stopped.
"""

import asyncio
import sys
import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clq_client.async_client import AsyncClient
from clq_client.batch.formats import convert, format_of
from clq_client.batch.journal import Journal
from clq_client.batch.report import (
    Bar,
    JsonLog,
    Lines,
    Quiet,
    Report,
    Tally,
    log_json,
    summary,
)
from clq_client.batch.send import Plan, Stopped, ask_service, check_same, send
from clq_client.batch.video import FrameChoice
from clq_client.batch.walk import Inputs
from clq_client.errors import ClqError
from clq_client.inputs import InputError
from clq_client.options import (
    ApiKey,
    Ca,
    Classes,
    Iou,
    Max,
    Model,
    Proxy,
    Score,
    Url,
    Version,
    class_names,
    give_up,
)
from clq_client.output import printable
from clq_client.pace import ServiceGone
from clq_client.requests import check_classes
from clq_client.run import Options


class Form(StrEnum):
    JSONL = "jsonl"
    COCO = "coco"
    CSV = "csv"
    PARQUET = "parquet"


class Log(StrEnum):
    TEXT = "text"
    JSON = "json"


class Urgency(StrEnum):
    BULK = "bulk"
    INTERACTIVE = "interactive"


def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Images, folders, 'patterns/**/*.png', and - for names on stdin.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The result; goes on with it if there.")
    ],
    format: Annotated[
        Form | None, typer.Option(help="Without it by the suffix: .jsonl .json .csv .parquet.")
    ] = None,
    annotate: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write copies with boxes drawn.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Paths in the result are relative to it.")
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="Names on stdin end with NUL (find -print0).")
    ] = False,
    every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Take each Nth frame of videos.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(metavar="F", help="Take F frames a second of videos.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Send what failed in earlier runs again.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    model: Model = None,
    version: Version = None,
    score: Score = None,
    iou: Iou = None,
    max: Max = None,
    classes: Classes = None,
    priority: Annotated[
        Urgency, typer.Option(help="bulk waits while others are interactive.")
    ] = Urgency.BULK,
    concurrency: Annotated[int, typer.Option(min=1, help="Images on the way at most.")] = 32,
    timeout: Annotated[float, typer.Option(metavar="S", help="Seconds for one attempt.")] = 60.0,
    patience: Annotated[
        float, typer.Option(metavar="S", help="Seconds without any result before it stops.")
    ] = 600.0,
    proxy: Proxy = None,
    ca: Ca = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Tell only what failed and what went wrong.")
    ] = False,
    log: Annotated[Log, typer.Option(help="json: one line for each event, on stderr.")] = Log.TEXT,
) -> None:
    """Finds objects in any number of images; kill it anywhere and start it again."""
    try:
        if every is not None and fps is not None:
            raise InputError("--every and --fps: accepted: one of the two")
        if fps is not None and not 0 < fps < 1e6:
            raise InputError(f"--fps {fps}: accepted: more than 0")
        choice = FrameChoice(every, fps) if every is not None or fps is not None else None

        def connect(deadline_s: float, retries: int) -> AsyncClient:
            return AsyncClient(
                url,
                api_key=api_key,
                model=model,
                version=version,
                priority=priority.value,
                deadline_s=deadline_s,
                retries=retries,
                proxy=proxy,
                ca_file=ca,
            )

        names = class_names(classes)
        check_classes(names)
        plan = Plan(
            inputs=Inputs(inputs, null, root, choice, annotate),
            options=Options(score, iou, max, names),
            connect=connect,
            model=(model, version),
            concurrency=concurrency,
            timeout_s=timeout,
            patience_s=patience,
        )
        form = format_of(out, None if format is None else format.value)
        code = _run(plan, out, form, retry_failed, _Teller(quiet, log is Log.JSON))
    except KeyboardInterrupt:  # before or after the sending
        raise typer.Exit(130) from None
    except (ClqError, ValueError, OSError) as error:
        if log is Log.JSON:
            log_json("error", {"detail": str(error)})
            raise typer.Exit(2) from error
        give_up(error)
    raise typer.Exit(code)


@dataclass(frozen=True, slots=True)
class _Teller:
    """How much is told, and in which form."""

    quiet: bool
    as_json: bool

    def report(self, tally: Tally) -> Report:
        if self.as_json:
            return JsonLog(tally)
        if self.quiet:
            return Quiet()
        return Bar(tally) if sys.stderr.isatty() else Lines(tally)

    def tell(self, text: str, *, important: bool = True) -> None:
        if self.as_json:
            log_json("note", {"text": text})
        elif important or not self.quiet:
            typer.echo(printable(text), err=True)


def _run(plan: Plan, out: Path, form: str, retry_failed: bool, teller: _Teller) -> int:
    """Prepares, sends, converts and tells; the exit code."""
    plan.inputs.check()
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {out}: is not a file in a folder that exists")
    models, labels = asyncio.run(ask_service(plan))  # before any file is made
    path = out if form == "jsonl" else out.with_name(f"{out.name}.journal.jsonl")
    with Journal(path, retry_failed=retry_failed) as journal:
        check_same(journal.found, plan, models, path)
        if journal.found.cut_bytes:
            teller.tell(f"{path}: cut {journal.found.cut_bytes} bytes of a line that was torn")
        tally = Tally(journal.found.done, journal.found.failed)
        code = _send(plan, journal, tally, teller)
        if code in (0, 1) and form != "jsonl":
            failures = convert(path, out, form, labels)
            if failures is not None:
                teller.tell(f"what failed: {failures}")
    _tell_end(tally, out, teller)
    return code


def _send(plan: Plan, journal: Journal, tally: Tally, teller: _Teller) -> int:
    """Sends what is left; the exit code."""
    report = teller.report(tally)
    report.start()
    if plan.inputs.countable() and not teller.quiet:
        threading.Thread(target=_count, args=(plan.inputs, tally), daemon=True).start()
    reason, code = "", 0
    try:
        digests = asyncio.run(send(plan, journal, tally, report))
        if len(digests) > 1:
            reason = f"{len(digests)} models answered: the service changed its model meanwhile"
    except Stopped as stop:
        reason, code = f"stopped by {stop}; the same command goes on", 128 + stop.number
    except ServiceGone as gone:
        reason, code = f"{gone}; the same command goes on", 3
    finally:
        report.stop()
    if reason:
        teller.tell(reason)
    return code or (1 if tally.failed + tally.failed_before + tally.not_annotated else 0)


def _tell_end(tally: Tally, out: Path, teller: _Teller) -> None:
    head, *failures = summary(tally, out)
    if not teller.as_json:  # there, every failure and the end were events
        teller.tell(head, important=False)
        for line in failures:
            teller.tell(line)


def _count(inputs: Inputs, tally: Tally) -> None:
    """Counts the images by a walk of its own, so that the time left can be told."""
    tally.total = sum(not isinstance(name, OSError) for name in inputs.names())
