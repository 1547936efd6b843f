"""The command `clq-client bench`.

Exit codes: 0 measured; 1 measured, but no request was answered with status 200, or the goal of
--slo is held at no rate; 2 nothing could be measured; 130 stopped with Ctrl-C.
"""

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated

import typer

from clq_client.bench.arrivals import ramp_rates
from clq_client.bench.ceiling import ceiling as measure_ceiling
from clq_client.bench.loops import Load
from clq_client.bench.measure import Arrivals, Measured, Plan, measure_clients
from clq_client.bench.plot import plot_html
from clq_client.bench.report import Report, table_lines
from clq_client.bench.run import run_ramp, search_goal
from clq_client.bench.slo import Goal
from clq_client.bench.target import Target
from clq_client.client import Client
from clq_client.errors import ClqError
from clq_client.inputs import find_images
from clq_client.options import ApiKey, Model, Url, give_up
from clq_client.requests import detect_request
from clq_client.settings import ClientSettings


def bench(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Images, and folders; sent by turns.")
    ],
    url: Url = None,
    api_key: ApiKey = None,
    model: Model = None,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Open loop: requests per second.")
    ] = None,
    ramp: Annotated[
        str | None, typer.Option(metavar="A:B", help="Open loop: rates from A to B per second.")
    ] = None,
    slo: Annotated[
        str | None,
        typer.Option(metavar="GOAL", help="Find the highest rate that holds, e.g. p99=200ms."),
    ] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="Closed loop: users who wait for their answers.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Rates of a ramp.")] = 5,
    duration_s: Annotated[float, typer.Option(min=0.1, help="Measured, for each rate.")] = 10.0,
    warmup_s: Annotated[float, typer.Option(min=0, help="Before it, not counted.")] = 2.0,
    arrivals: Annotated[Arrivals, typer.Option(help="Of an open loop.")] = Arrivals.POISSON,
    seed: Annotated[int, typer.Option(help="Of the Poisson arrivals.")] = 0,
    timeout_s: Annotated[float, typer.Option(min=0.01, help="For one request.")] = 30.0,
    connections: Annotated[int, typer.Option(min=1, help="Most of an open loop.")] = 512,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page with plots.")
    ] = None,
) -> None:
    """Measures how a service does under load: rates, latencies, errors, its own stages."""
    try:
        goal = None if slo is None else Goal.parse(slo)
        rates = _rates(rate, ramp, slo, clients, steps)
        images = [path.read_bytes() for path in find_images(paths)]
        plan = Plan(warmup_s, duration_s, arrivals, seed, goal)
        _check_service(url, api_key, model, images[0])
        settings = ClientSettings.checked(url, api_key, model, None, None, timeout_s, 0, None, None)
        load = bench_load(settings, images, clients or connections, timeout_s)
        report = asyncio.run(_run(settings.url, load, plan, rates, clients, images))
        _write(report, json_out, plot)
    except (ClqError, ValueError, OSError) as error:
        give_up(error)
    except KeyboardInterrupt:
        typer.echo("stopped; what was measured is not complete, so nothing is reported", err=True)
        raise typer.Exit(130) from None
    for line in report.lines():
        typer.echo(line)
    missed = goal is not None and report.chosen.holds_goal is not True
    if goal is not None:
        held = f"held at {report.chosen.rate:.1f} requests/s" if not missed else "held at no rate"
        typer.echo(f"\n{goal}: {held}")
    raise typer.Exit(1 if missed or not report.chosen.figures.latency_ms else 0)


def _rates(
    rate: float | None, ramp: str | None, slo: str | None, clients: int | None, steps: int
) -> list[float]:
    """The rates of an open loop; [] for a closed one and for a search."""
    if sum(option is not None for option in (rate, ramp, slo, clients)) != 1:
        raise ValueError("give exactly one of --rate, --ramp, --slo and --clients")
    if rate is not None:
        return [rate]
    if ramp is None:
        return []
    first, _, last = ramp.partition(":")
    try:
        ends = float(first), float(last)
    except ValueError:
        ends = (0.0, 0.0)
    if not (0.01 <= ends[0] < 1e6 and 0.01 <= ends[1] < 1e6):
        raise ValueError(f"--ramp: {ramp!r} is no pair of rates; accepted: e.g. 5:50")
    return list(ramp_rates(*ends, steps))


def _check_service(url: str | None, api_key: str | None, model: str | None, image: bytes) -> None:
    """Raises ClqError where the service does not answer an image as CLQ does."""
    with Client(url, api_key=api_key, model=model, retries=0) as client:
        client.detect(image)


def bench_load(
    settings: ClientSettings, images: list[bytes], connections: int, timeout_s: float
) -> Load:
    """The images as requests to the service, with the key of the settings.

    The service is told the time limit, so that it does not work on what is given up already.
    """
    target = Target.of(settings.url)
    requests = []
    for image in images:
        request = detect_request(settings, image, None, None, None, None, None)
        headers = request.headers(settings, timeout_s)
        del headers["X-Request-ID"]  # the same bytes are sent again and again
        requests.append(target.request_bytes(request, headers))
    return Load(target, requests, connections, timeout_s)


async def _run(
    service: str,
    load: Load,
    plan: Plan,
    rates: list[float],
    clients: int | None,
    images: list[bytes],
) -> Report:
    ceiling = await measure_ceiling(load.requests, min(load.connections, 64))
    chosen: Measured | None
    if rates:
        runs = await run_ramp(load, plan, rates, tell)
        chosen = runs[-1]
    elif clients is not None:
        chosen = await measure_clients(load, plan)
        runs = [chosen]
    else:
        runs, chosen = await search_goal(load, plan, ceiling, tell)
        chosen = chosen or runs[-1]
    sizes = sum(len(image) for image in images)
    return Report(service, len(images), sizes, plan, ceiling, runs, chosen)


def tell(run: Measured) -> None:
    """Shows a measurement on stderr as soon as it is made."""
    typer.echo(table_lines([run])[1], err=True)


def _write(report: Report, json_out: Path | None, plot: Path | None) -> None:
    if json_out is not None:
        _replace(json_out, json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n")
    if plot is not None:
        _replace(plot, plot_html(report))


def _replace(path: Path, text: str) -> None:
    """Writes all of the file or nothing."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
