"""The commands of clq-client.

Exit codes: 0 all went well; 1 some images failed; 2 nothing could be done (the command line is
wrong, the service is not there); 130 stopped with Ctrl-C.
"""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

from clq_client.async_client import AsyncClient
from clq_client.bench.command import bench
from clq_client.client import Client
from clq_client.errors import ClqError
from clq_client.inputs import InputError, annotated_names, find_images, refuse_overwriting
from clq_client.output import JsonLines, ProgressBar, Tables, failure_lines, printable
from clq_client.requests import detect_request
from clq_client.run import InOrder, Job, Options, Outcome, detect_all
from clq_client.settings import ClientSettings

app = typer.Typer(
    help="Finds objects in images with a CLQ detection service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

app.command()(bench)

Url = Annotated[
    str | None,
    typer.Option(help="Service; without it CLQ_URL, else http://127.0.0.1:8000."),
]


T = TypeVar("T")


@app.command()
def detect(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Images, and folders of images.")
    ],
    url: Url = None,
    score: Annotated[float | None, typer.Option(min=0, max=1, help="Only scores above it.")] = None,
    iou: Annotated[
        float | None, typer.Option(min=0, max=1, help="Above this overlap one of two boxes goes.")
    ] = None,
    max: Annotated[int | None, typer.Option(min=1, max=1000, help="Detections per image.")] = None,
    classes: Annotated[str | None, typer.Option(help="Names, with commas between.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one JSON line per image.")
    ] = None,
    annotate: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write copies with boxes drawn.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Images on the way at once.")] = 4,
) -> None:
    """Finds objects in images."""
    names = None if classes is None else tuple(name.strip() for name in classes.split(","))
    options = Options(score, iou, max, names)
    try:
        settings = ClientSettings.checked(url, None, None, None, None, 60.0, 4, None, None)
        detect_request(settings, b"", score, iou, max, names, None)  # fails before the work
        jobs = _jobs(paths, out, annotate)
        with Client(url) as client:
            client.ready()  # no retries: a service that is not there is told at once
        code = _detect(client.url, jobs, options, out, concurrency)
    except BrokenPipeError:
        raise  # `clq-client ... | head`: the command line library ends quietly
    except (ClqError, ValueError, OSError) as error:
        _give_up(error)
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
        _give_up(error)


def _jobs(paths: list[Path], out: Path | None, annotate: Path | None) -> list[Job]:
    """The images of the command line, after everything about files that could go wrong."""
    images = find_images(paths)
    if out is not None:
        refuse_overwriting(out.parent, [out.name], images)
        if out.is_dir() or not out.parent.is_dir():
            raise InputError(f"--out {out}: is not a file in a folder that exists")
    if annotate is None:
        return [Job(image, None) for image in images]
    names = annotated_names(images)
    refuse_overwriting(annotate, names, images)
    for path in paths:
        if path.is_dir() and annotate.resolve().is_relative_to(path.resolve()):
            # The next run would take the annotated copies for images.
            raise InputError(f"--annotate {annotate}: lies inside the input {path}")
    annotate.mkdir(parents=True, exist_ok=True)
    return [Job(image, annotate / name) for image, name in zip(images, names, strict=True)]


def _detect(url: str, jobs: list[Job], options: Options, out: Path | None, concurrency: int) -> int:
    """Sends all images, shows or stores what comes back, lists what failed; the exit code."""
    failed: list[Outcome] = []
    code = 0
    try:
        _run(url, jobs, options, out, concurrency, failed)
    except KeyboardInterrupt:
        kept = "" if out is None else f"; {out} has the images that were done"
        typer.echo(f"stopped{kept}", err=True)
        code = 130
    if failed:
        for line in failure_lines(failed, len(jobs)):
            typer.echo(line, err=True)
    return code or (1 if failed else 0)


def _run(
    url: str,
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

        in_order = InOrder(deliver)

        def put(index: int, outcome: Outcome) -> None:
            in_order.put(index, outcome)
            progress.advance()

        try:
            asyncio.run(_send_all(url, jobs, options, concurrency, put))
        finally:
            in_order.flush()
    if out is not None:
        typer.echo(f"{progress.summary()}: {out}", err=True)


async def _send_all(
    url: str,
    jobs: list[Job],
    options: Options,
    concurrency: int,
    put: Callable[[int, Outcome], None],
) -> None:
    async with AsyncClient(url) as client:
        await detect_all(client, jobs, options, concurrency, put)


def _give_up(error: Exception) -> NoReturn:
    typer.echo(f"clq-client: {printable(error)}", err=True)
    raise typer.Exit(2) from error
