"""The commands of clq-client.

Exit codes: 0 all went well; 1 some images failed; 2 nothing could be done (the command line is
wrong, the service is not there); 130 stopped with Ctrl-C.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from clq_client.async_client import AsyncClient
from clq_client.batch.command import batch
from clq_client.bench.command import bench
from clq_client.client import Client
from clq_client.errors import ClqError
from clq_client.eval_command import eval_
from clq_client.inputs import InputError, annotated_names, find_images, refuse_overwriting
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
from clq_client.output import JsonLines, ProgressBar, Tables, failure_lines, printable
from clq_client.pace import Pace, ServiceGone
from clq_client.requests import check_classes
from clq_client.run import InOrder, Job, Options, Outcome, detect_all
from clq_client.tune.command import tune

PATIENCE_S = 60.0  # for a few images in front of a person

app = typer.Typer(
    help="Finds objects in images with a CLQ detection service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

app.command()(batch)
app.command()(bench)
app.command("eval")(eval_)
app.command()(tune)

T = TypeVar("T")


@app.command()
def detect(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Images, and folders of images.")
    ],
    url: Url = None,
    api_key: ApiKey = None,
    model: Model = None,
    version: Version = None,
    score: Score = None,
    iou: Iou = None,
    max: Max = None,
    classes: Classes = None,
    proxy: Proxy = None,
    ca: Ca = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one JSON line per image.")
    ] = None,
    annotate: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write copies with boxes drawn.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Images on the way at once.")] = 4,
) -> None:
    """Finds objects in images."""
    try:
        options = Options(score, iou, max, class_names(classes))
        check_classes(options.classes)
        jobs = _jobs(paths, out, annotate)
        client = AsyncClient(
            url,
            api_key=api_key,
            model=model,
            version=version,
            retries=0,  # they are made where all images know of each other
            proxy=proxy,
            ca_file=ca,
        )
        code = _detect(client, jobs, options, out, concurrency)
    except BrokenPipeError:
        raise  # `clq-client ... | head`: the command line library ends quietly
    except (ClqError, ServiceGone, ValueError, OSError) as error:
        give_up(error)
    raise typer.Exit(code)


@app.command()
def labels(url: Url = None) -> None:
    """Shows the classes: number and name."""
    for item in _ask(url, Client.labels):
        typer.echo(f"{item.class_id}\t{printable(item.label)}")


@app.command()
def models(url: Url = None) -> None:
    """Shows the models: name, version and digest."""
    for model in _ask(url, Client.models):
        typer.echo(f"{printable(model.name)}\t{model.version}\t{model.digest}")


def _ask(url: str | None, question: Callable[[Client], T]) -> T:
    try:
        with Client(url) as client:
            client.ready()  # no retries: a service that is not there is told at once
            return question(client)
    except (ClqError, ValueError) as error:
        give_up(error)


def _jobs(paths: list[Path], out: Path | None, annotate: Path | None) -> list[Job]:
    """The images of the command line, after everything about files that could go wrong."""
    images = find_images(paths)
    if out is not None:
        refuse_overwriting(out.parent, [out.name], images)
        if out.is_dir() or not out.parent.is_dir():
            raise InputError(f"--out {out}: is not a file in a folder that exists")
    if annotate is None:
        return [Job(str(image), image) for image in images]
    names = annotated_names(images)
    refuse_overwriting(annotate, names, images)
    for path in paths:
        if path.is_dir() and annotate.resolve().is_relative_to(path.resolve()):
            # The next run would take the annotated copies for images.
            raise InputError(f"--annotate {annotate}: lies inside the input {path}")
    annotate.mkdir(parents=True, exist_ok=True)
    return [
        Job(str(image), image, annotate / name) for image, name in zip(images, names, strict=True)
    ]


def _detect(
    client: AsyncClient, jobs: list[Job], options: Options, out: Path | None, concurrency: int
) -> int:
    """Sends all images, shows or stores what comes back, lists what failed; the exit code."""
    failed: list[Outcome] = []
    code = 0
    try:
        _run(client, jobs, options, out, concurrency, failed)
    except KeyboardInterrupt:
        kept = "" if out is None else f"; {out} has the images that were done"
        typer.echo(f"stopped{kept}", err=True)
        code = 130
    if failed:
        for line in failure_lines(failed, len(jobs)):
            typer.echo(line, err=True)
    return code or (1 if failed else 0)


def _run(
    client: AsyncClient,
    jobs: list[Job],
    options: Options,
    out: Path | None,
    concurrency: int,
    failed: list[Outcome],
) -> None:
    """Sends all images, shows or stores the outcomes, and collects those that failed."""
    tables = Tables()
    file = nullcontext() if out is None else JsonLines(out)
    with ProgressBar(len(jobs), shown=out is not None) as progress, file as lines:

        def deliver(outcome: Outcome) -> None:
            if lines is None:
                tables.show(outcome)
            else:
                lines.write(outcome)
            if outcome.failure is not None:
                failed.append(outcome)

        in_order = InOrder(jobs, deliver)

        async def put(outcome: Outcome) -> None:
            in_order.put(outcome)
            progress.advance()

        try:
            asyncio.run(_send_all(client, jobs, options, concurrency, put))
        finally:
            in_order.flush()
    if out is not None:
        typer.echo(f"{progress.summary()}: {out}", err=True)


async def _send_all(
    client: AsyncClient,
    jobs: list[Job],
    options: Options,
    concurrency: int,
    put: Callable[[Outcome], Awaitable[None]],
) -> None:
    async def each() -> AsyncIterator[Job]:
        for job in jobs:
            yield job

    async with client:
        await client.ready()  # a service that is not there is told at once
        await detect_all(client, each(), options, Pace(concurrency, PATIENCE_S), concurrency, put)
