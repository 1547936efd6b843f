"""The command `clq-client tune`.

Exit codes: 0 there are settings that hold the goal; 1 none do; 2 nothing could be measured; 130
stopped with Ctrl-C, after the service process was ended.
"""

import asyncio
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from clq_client.bench.ceiling import ceiling
from clq_client.bench.command import bench_load, tell
from clq_client.bench.loops import Load
from clq_client.bench.measure import Arrivals, Measured, Plan
from clq_client.bench.run import PROBE_CLIENTS, search_goal
from clq_client.bench.slo import Goal
from clq_client.errors import ClqError
from clq_client.inputs import find_images
from clq_client.options import give_up
from clq_client.settings import ClientSettings
from clq_client.tune.candidates import Candidate, default_candidates, given_candidates
from clq_client.tune.halving import halve
from clq_client.tune.server import NotStarted, service
from clq_client.tune.trial import WARMUP_SHARE, Trial, try_service

THROUGHPUT = "throughput"
TIMEOUT_S = 30.0
OPEN_CONNECTIONS = 512


def tune(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Images like those that will come.")
    ],
    goal: Annotated[
        str, typer.Option(help="Most requests/s while e.g. p99=500ms holds, or: throughput.")
    ] = THROUGHPUT,
    command: Annotated[
        str, typer.Option(help="Starts the service; its settings come by CLQ_SERVE_*.")
    ] = "clq-serve run",
    choices: Annotated[
        list[str] | None,
        typer.Option("--try", metavar="NAME=V,V", help="Settings to combine; may be repeated."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Of each measurement in the first round.")
    ] = 2.0,
    cores: Annotated[
        int | None, typer.Option(min=1, help="That the service may use; default: this process's.")
    ] = None,
) -> None:
    """Finds the settings with which a service does most on this machine."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    trials = _Trials()
    try:
        wanted = None if goal == THROUGHPUT else Goal.parse(goal)
        device = os.environ.get("CLQ_SERVE_DEVICE", "cpu")
        candidates = (
            given_candidates(choices) if choices else default_candidates(device, cores or _cores())
        )
        images = [path.read_bytes() for path in find_images(paths)]
        ranking, confirmed = asyncio.run(
            _search(trials, candidates, command, images, wanted, seconds)
        )
    except (ClqError, ValueError, OSError) as error:
        give_up(error)
    except KeyboardInterrupt:
        typer.echo("stopped; the service process is ended.  Measured so far:", err=True)
        for line in trials.lines(goal):
            typer.echo(line, err=True)
        raise typer.Exit(130) from None
    for line in trials.lines(goal):
        typer.echo(line)
    raise typer.Exit(_advise(ranking, goal, confirmed))


async def _search(
    trials: "_Trials",
    candidates: list[Candidate],
    command: str,
    images: list[bytes],
    goal: Goal | None,
    seconds: float,
) -> tuple[list[tuple[Candidate, Trial]], Measured | None]:
    """(the last candidates, best first; what the best holds in an open loop, for a goal)."""

    async def score(candidate: Candidate, length_s: float) -> Trial | None:
        return await trials.make(candidate, command, images, goal, length_s)

    ranking = await halve(candidates, score, seconds)
    if goal is None or not ranking or not ranking[0][1].holds:
        return ranking, None
    return ranking, await _open_loop(ranking[0][0], command, images, goal, 2 * seconds)


class _Trials:
    """The last trial of each candidate, in the order in which they were tried first."""

    def __init__(self) -> None:
        self._last: dict[Candidate, tuple[Trial | None, float, str]] = {}

    async def make(
        self,
        candidate: Candidate,
        command: str,
        images: list[bytes],
        goal: Goal | None,
        seconds: float,
    ) -> Trial | None:
        """Tries a candidate; None if no service can be started with it."""
        trial, reason = None, ""
        try:
            async with service(command, candidate.environment()) as url:
                trial = await try_service(_load(url, images, 1), goal, seconds)
        except NotStarted as error:
            reason = str(error)
        self._last[candidate] = (trial, seconds, reason)
        typer.echo(f"{seconds:4g} s  {_row(candidate, trial, reason)}", err=True)
        return trial

    def lines(self, goal: str) -> list[str]:
        """The table: best first, those that did not start last."""
        rows = sorted(
            self._last.items(),
            key=lambda item: (0.0, 0.0) if item[1][0] is None else item[1][0].score,
            reverse=True,
        )
        head = f"good/s  clients      p50      p99  measured  goal {goal}"
        return [head] + [
            f"{_figures(trial)}  {seconds:6g} s  {_held(trial)}  {candidate}{_because(reason)}"
            for candidate, (trial, seconds, reason) in rows
        ]


def _load(url: str, images: list[bytes], connections: int) -> Load:
    settings = ClientSettings.checked(url, None, None, None, None, TIMEOUT_S, 0, None, None)
    return bench_load(settings, images, connections, TIMEOUT_S)


async def _open_loop(
    candidate: Candidate, command: str, images: list[bytes], goal: Goal, seconds: float
) -> Measured | None:
    """The highest rate of independent users at which the goal is held: the figure to plan with.

    The users of the trials wait for each other, which is quicker to measure, but kinder.
    """
    typer.echo("the best settings in an open loop:", err=True)
    plan = Plan(WARMUP_SHARE * seconds, seconds, Arrivals.POISSON, 0, goal)

    async with service(command, candidate.environment()) as url:
        load = _load(url, images, OPEN_CONNECTIONS)
        most = await ceiling(load.requests, PROBE_CLIENTS)
        return (await search_goal(load, plan, most, tell))[1]


def _figures(trial: Trial | None) -> str:
    if trial is None or not trial.best.figures.latency_ms:
        return f"{'-':>6}  {'-':>7}  {'-':>7}  {'-':>7}"
    figures = trial.best.figures
    latencies = "  ".join(f"{figures.latency_ms[name]:7.1f}" for name in ("p50", "p99"))
    return f"{figures.goodput:6.1f}  {trial.best.clients:7d}  {latencies}"


def _held(trial: Trial | None) -> str:
    return "not tried" if trial is None else "held     " if trial.holds else "missed   "


def _because(reason: str) -> str:
    return f"  ({reason})" if reason else ""


def _row(candidate: Candidate, trial: Trial | None, reason: str) -> str:
    return f"{_figures(trial)}  {_held(trial)}  {candidate}{_because(reason)}"


def _advise(ranking: list[tuple[Candidate, Trial]], goal: str, confirmed: Measured | None) -> int:
    """Prints the settings to use; the exit code."""
    if not ranking or not ranking[0][1].holds:
        typer.echo(f"\nno settings hold {goal}")
        return 1
    best = ranking[0][0]
    if confirmed is not None:
        typer.echo(
            f"\nthe best settings hold {goal} up to {confirmed.rate:.1f} requests/s of independent "
            "users (Poisson arrivals)"
        )
    if not best.settings:
        typer.echo("\nuse the settings as they are now: none that were tried did more")
        return 0
    typer.echo("\nuse these settings, as variables\n")
    for name, value in best.environment().items():
        typer.echo(f"{name}={value}")
    typer.echo("\nor in the TOML file of the service\n")
    typer.echo(best.toml(), nl=False)
    return 0


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
