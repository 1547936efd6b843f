"""clq-client eval.

Exit codes: 0 measured; 1 measured, but some images failed, which counts as nothing found in them;
2 nothing measured; 130 stopped with Ctrl-C.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from clq_client.async_client import AsyncClient
from clq_client.client import Client
from clq_client.errors import ClqError
from clq_client.evaluate import Evaluation, Truth, coco_results, measure, read_truth
from clq_client.inputs import InputError
from clq_client.options import ApiKey, Ca, Model, Proxy, Url, Version, give_up
from clq_client.output import ProgressBar, failure_lines, printable
from clq_client.pace import Pace, ServiceGone
from clq_client.run import Job, Options, Outcome, detect_all

PATIENCE_S = 120.0


def eval_(
    data: Annotated[Path, typer.Option(metavar="FILE", help="Annotations in COCO's format.")],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of the images; without it the file's own.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    model: Model = None,
    version: Version = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="Only scores above it.")] = 0.05,
    iou: Annotated[
        float, typer.Option(min=0, max=1, help="Above this overlap one of two boxes goes.")
    ] = 0.6,
    max: Annotated[int, typer.Option(min=1, max=1000, help="Detections per image.")] = 100,
    concurrency: Annotated[int, typer.Option(min=1, help="Images on the way at most.")] = 8,
    proxy: Proxy = None,
    ca: Ca = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measures COCO average precision of the running service, from the file to the answer.

    The thresholds are those of clq-train eval.
    """
    try:
        _require_pycocotools()
        client = AsyncClient(
            url,
            api_key=api_key,
            model=model,
            version=version,
            priority="bulk",
            retries=0,
            proxy=proxy,
            ca_file=ca,
        )
        with Client(
            url, api_key=api_key, model=model, version=version, proxy=proxy, ca_file=ca
        ) as asking:
            labels = asking.labels()
        truth = read_truth(data, images or data.parent, labels)
        for name in truth.dropped:
            told = f"{data}: category {name!r} is not one of the model's; its boxes do not count"
            typer.echo(printable(told), err=True)
        results, failed = _run(client, truth, Options(score, iou, max), concurrency)
        found = measure(truth.tree, results, labels)
    except (ClqError, ServiceGone, ValueError, OSError) as error:
        give_up(error)
    for line in failure_lines(failed, found.images) if failed else ():
        typer.echo(line, err=True)
    typer.echo(json.dumps(asdict(found)) if as_json else "\n".join(_table(found)))
    raise typer.Exit(1 if failed else 0)


def _run(
    client: AsyncClient, truth: Truth, options: Options, concurrency: int
) -> tuple[list[dict[str, Any]], list[Outcome]]:
    """The detections in all images, and what failed."""
    results: list[dict[str, Any]] = []
    failed: list[Outcome] = []

    ids = {str(path): image_id for image_id, path in truth.paths.items()}

    async def jobs() -> AsyncIterator[Job]:
        for path in truth.paths.values():
            yield Job(str(path), path)

    async def put(outcome: Outcome) -> None:
        progress.advance()
        if outcome.result is None:
            failed.append(outcome)
        else:
            results.extend(coco_results(ids[outcome.job.key], outcome.result))

    async def send() -> None:
        async with client:
            pace = Pace(concurrency, PATIENCE_S)
            await detect_all(client, jobs(), options, pace, concurrency, put)

    with ProgressBar(len(truth.paths), shown=True) as progress:
        asyncio.run(send())
    return results, failed


def _table(found: Evaluation) -> list[str]:
    lines = [f"{found.images} images"]
    for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"):
        lines.append(f"{name.replace('_', ' ').upper():12s} {_percent(getattr(found, name))}")
    lines += [f"  {printable(name):16s} {_percent(ap)}" for name, ap in found.per_class.items()]
    return lines


def _percent(value: float) -> str:
    return f"{100 * value:5.1f}" if value >= 0 else " none"


def _require_pycocotools() -> None:
    try:
        import pycocotools  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError('eval needs pycocotools: pip install "clq-client[eval]"') from error
