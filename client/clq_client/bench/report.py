"""The result of a bench run: as a table for a person, as JSON for a program, and what to doubt."""

from collections.abc import Sequence
from dataclasses import dataclass

from clq_client.bench.measure import Measured, Plan
from clq_client.bench.percentiles import SHOWN, percentile, percentile_name

SATURATED_LAG_MS = 10.0  # and LAG_SHARE of the median latency: below it the lag is no matter
LAG_SHARE = 0.05
SATURATED_CPU_SHARE = 0.9
CEILING_SHARE = 0.5  # nearer to its own ceiling a generator's queues are part of the latency
KEPT_UP_SHARE = 0.95
_PERCENTILES = tuple(percentile_name(q) for q in SHOWN)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about one bench run.

    ceiling  requests per second that the generator can send, None where it was not measured
    runs     in the order in which they were made
    chosen   the one whose details are shown: of a search the one that was confirmed
    """

    url: str
    images: int
    image_bytes: int
    plan: Plan
    ceiling: float | None
    runs: Sequence[Measured]
    chosen: Measured

    def to_dict(self) -> dict[str, object]:
        """The report as JSON takes it."""
        plan = self.plan
        goal = None if plan.goal is None else str(plan.goal)
        return {
            "url": self.url,
            "images": {"count": self.images, "bytes": self.image_bytes},
            "plan": {
                "warmup_s": plan.warmup_s,
                "duration_s": plan.duration_s,
                "arrivals": str(plan.arrivals),
                "seed": plan.seed,
                "goal": goal,
            },
            "generator_ceiling": self.ceiling,
            "runs": [run.to_dict() for run in self.runs],
            "chosen": self.runs.index(self.chosen),
            "warnings": self.warnings(),
        }

    def warnings(self) -> list[str]:
        """What makes figures doubtful, one sentence each."""
        return [
            sentence for run in self.runs for sentence in _warnings_of(run, self.ceiling)
        ] + _thin_percentiles(self.chosen)

    def lines(self) -> list[str]:
        """The report as text: a headline, the table of runs, the stages of the chosen run."""
        plan = self.plan
        loop = (
            "closed loop"
            if self.chosen.clients is not None
            else f"open loop, {plan.arrivals} arrivals, seed {plan.seed}"
        )
        size_kb = self.image_bytes / self.images / 1000
        head = [
            f"{self.url}: {loop}; {plan.duration_s:g} s after {plan.warmup_s:g} s of warm-up; "
            f"{self.images} images of {size_kb:.0f} kB on average"
        ]
        if self.ceiling is not None:
            head.append(f"generator: at most {self.ceiling:.0f} requests/s here with these images")
        lines = [*head, "", *table_lines(self.runs), "", *stage_lines(self.chosen)]
        return lines + [f"warning: {sentence}" for sentence in self.warnings()]


def table_lines(runs: Sequence[Measured]) -> list[str]:
    """One line for each run; latencies in milliseconds, of answers with status 200."""
    names = ["load", "offered/s", "done/s", "good/s", *_PERCENTILES, "max", "goal", "errors"]
    rows = [_row(run) for run in runs]
    widths = [max(len(row[i]) for row in [names, *rows]) for i in range(len(names))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [names, *rows]
    ]


def load_name(run: Measured) -> str:
    """E.g. "25.0/s", "4 clients"."""
    if run.rate is not None:
        return f"{run.rate:.1f}/s"
    return "1 client" if run.clients == 1 else f"{run.clients} clients"


def stage_lines(run: Measured) -> list[str]:
    """The service's own stages beside the client's latency, milliseconds."""
    figures = run.figures
    if not figures.latency_ms:
        return ["no request was answered with status 200"]
    rows = {"client": {name: figures.latency_ms[name] for name in ("mean", "p50", "p99")}}
    rows |= figures.server_ms
    width = max(len(stage) for stage in rows)
    lines = [f"{'ms':<{width}}  {'mean':>8}  {'p50':>8}  {'p99':>8}   ({load_name(run)})"]
    lines += [
        f"{stage:<{width}}  " + "  ".join(f"{row[name]:8.1f}" for name in ("mean", "p50", "p99"))
        for stage, row in rows.items()
    ]
    if not figures.server_ms:
        lines.append("the service sends no Server-Timing")
    return lines


def _row(run: Measured) -> list[str]:
    figures = run.figures
    goal = {None: "", True: "held", False: "missed"}[run.holds_goal]
    errors = ", ".join(f"{count} x {name}" for name, count in figures.errors.items())
    latencies = [
        f"{figures.latency_ms[name]:.1f}" if figures.latency_ms else "-"
        for name in (*_PERCENTILES, "max")
    ]
    rates = [f"{v:.1f}" for v in (figures.offered, figures.throughput, figures.goodput)]
    return [load_name(run), *rates, *latencies, goal, errors or "0"]


def _warnings_of(run: Measured, ceiling: float | None) -> list[str]:
    figures, name = run.figures, load_name(run)
    found = []
    lag_matters_ms = max(SATURATED_LAG_MS, LAG_SHARE * figures.latency_ms.get("p50", 0.0))
    if run.cpu_share > SATURATED_CPU_SHARE:
        found.append(
            f"{name}: the generator was saturated, it used {100 * run.cpu_share:.0f} % of a core; "
            "latencies are partly its own"
        )
    elif run.lag_p99_ms > lag_matters_ms:
        found.append(
            f"{name}: this machine was too busy for the generator: its event loop was late by "
            f"{run.lag_p99_ms:.0f} ms (p99), which is part of the latencies"
        )
    if ceiling is not None and figures.throughput > CEILING_SHARE * ceiling:
        found.append(
            f"{name}: {figures.throughput:.0f} requests/s are more than "
            f"{100 * CEILING_SHARE:.0f} % of what the generator can send"
        )
    if run.rate is not None and figures.throughput < KEPT_UP_SHARE * figures.offered:
        found.append(
            f"{name}: the service did not keep up; its queue grew, so the latencies depend on the "
            "length of the run"
        )
    if figures.resent:
        found.append(
            f"{name}: {figures.resent} requests were sent twice, because the service had closed "
            "their connection"
        )
    return found


def _thin_percentiles(run: Measured) -> list[str]:
    count = run.figures.good
    thin = [percentile_name(q) for q in SHOWN if count and percentile(range(count), q) == count - 1]
    return [f"{' and '.join(thin)} of {count} answers are their maximum"] if thin else []
