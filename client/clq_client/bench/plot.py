"""The plots of a bench run: one HTML page without scripts, inline SVG, light and dark."""

from collections.abc import Sequence
from html import escape
from math import log10

from clq_client.bench.measure import Measured
from clq_client.bench.percentiles import SHOWN, percentile, percentile_name
from clq_client.bench.report import Report, load_name, table_lines
from clq_client.bench.svg import (
    BOTTOM,
    HEIGHT,
    Series,
    chart,
    legend,
    log_y_axis,
    named_x_axis,
    x_axis,
    y_axis,
)

SLICES = 60
_CURVE = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)  # percent; the axis is logarithmic in 100 - percent
_STAGES = ("upload", "decode", "queue", "infer", "post", "encode")
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --dim: #5d6570; --grid: #dfe3e8; --page: #fff;
  --c1: #2264c9; --c2: #10845c; --c3: #b35a00; --c4: #b3261e; --c5: #7a4fc0; --c6: #8a929c;
  --c7: #b83280; --c8: #5f6b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --dim: #a2abb6; --grid: #343a42; --page: #16181c;
    --c1: #6ea8ff; --c2: #4cc79a; --c3: #f0a355; --c4: #ff8078; --c5: #b99bf5; --c6: #7d8690;
    --c7: #f08bc4; --c8: #c3cf5a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 760px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .3rem; }
p.about { color: var(--dim); margin: 0 0 .5rem; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--dim); }
.grid { stroke: var(--grid); } .line { fill: none; stroke-width: 2; }
.legend span { margin-right: 1.2rem; white-space: nowrap; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
pre { overflow-x: auto; font-size: 13px; line-height: 1.45; }
""" + "\n".join(
    f".line.c{i} {{ stroke: var(--c{i}); }} .mark.c{i}, .bar.c{i} {{ fill: var(--c{i}); }} "
    f".swatch.c{i} {{ background: var(--c{i}); }}"
    for i in range(1, 9)
)


def plot_html(report: Report) -> str:
    """The page: latency and goodput by rate where there are several, the chosen run in detail."""
    sections = []
    open_runs = sorted((r for r in report.runs if r.rate is not None), key=lambda r: r.rate or 0)
    if len(open_runs) > 1:
        sections += [_latency_by_rate(open_runs, report), _goodput_by_rate(open_runs)]
    if report.chosen.figures.latency_ms:
        sections += [_over_time(report.chosen), _curve(report.chosen), _stages(report.chosen)]
    warnings = "".join(f"<p>Warning: {escape(sentence)}.</p>" for sentence in report.warnings())
    table = escape("\n".join(table_lines(report.runs)))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>CLQ load test</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_STYLE}</style></head><body>
<h1>CLQ load test</h1>
<p class="about">{escape(report.lines()[0])}</p>
{"".join(sections)}
<h2>Figures</h2>
<p class="about">Milliseconds, from the arrival of a request to the last byte of its answer;
status 200 only.</p>
<pre>{table}</pre>
{warnings}</body></html>
"""


def _section(title: str, about: str, body: str) -> str:
    return f'<h2>{escape(title)}</h2><p class="about">{escape(about)}</p>{body}\n'


def _latency_by_rate(runs: Sequence[Measured], report: Report) -> str:
    answered = [run for run in runs if run.figures.latency_ms]
    names = [percentile_name(q) for q in SHOWN]
    values = [run.figures.latency_ms[name] for run in answered for name in names]
    series = [
        Series(
            name,
            colour,
            [(r.rate or 0, r.figures.latency_ms[name]) for r in answered],
            marks=True,
        )
        for colour, name in enumerate(names, 1)
    ]
    x = x_axis("offered requests per second", 0, max(run.rate or 0 for run in runs))
    goal = report.plan.goal
    if goal is not None:
        values.append(goal.limit_ms)
        line = [(x.low, goal.limit_ms), (x.high, goal.limit_ms)]
        series.append(Series(f"goal {goal}", 6, line, dashed=True))
    if not values:
        return ""
    y = log_y_axis("ms", min(values), max(values))
    about = "Open loop: latency counts from the scheduled arrival of each request."
    return _section("Latency by rate", about, chart(x, y, series))


def _goodput_by_rate(runs: Sequence[Measured]) -> str:
    points = [(run.rate or 0, run.figures.goodput) for run in runs]
    most = max(rate for rate, _ in points)
    x = x_axis("offered requests per second", 0, most)
    y = y_axis("good answers per second", max(most, *(good for _, good in points)))
    series = [
        Series("offered", 6, [(0, 0), (most, most)], dashed=True),
        Series("goodput", 2, points, marks=True),
    ]
    limit = runs[0].figures.within_ms
    about = "Answers of status 200" + (f" within {limit:g} ms." if limit is not None else ".")
    return _section("Goodput by rate", about, chart(x, y, series))


def _over_time(run: Measured) -> str:
    """p50 and the slowest of each slice of the window, and every error."""
    length_s = run.window.length_s / SLICES
    slices: list[list[float]] = [[] for _ in range(SLICES)]
    errors = []
    for sample in run.samples:
        at_s = sample.due_s - run.window.begin_s
        if not 0 <= at_s < run.window.length_s:
            continue
        if sample.status == 200:
            index = min(int(at_s / length_s), SLICES - 1)
            slices[index].append(1e3 * (sample.ended_s - sample.due_s))
        else:
            errors.append(at_s)
    full = [(length_s * (i + 0.5), sorted(values)) for i, values in enumerate(slices) if values]
    latencies = run.figures.latency_ms
    x = x_axis("arrival, seconds after the warm-up", 0, run.window.length_s)
    y = y_axis("ms", latencies["max"])
    series = [
        Series("slowest", 4, [(at_s, values[-1]) for at_s, values in full]),
        Series("p50", 1, [(at_s, percentile(values, 50)) for at_s, values in full]),
    ]
    ticks = "".join(
        f'<rect class="bar c4" x="{x.px(at_s):.1f}" y="{HEIGHT - BOTTOM - 6}" width="1.5" '
        'height="6"/>'
        for at_s in errors
    )
    about = f"{load_name(run)}, in {SLICES} slices."
    if errors:
        about += f" The {len(errors)} requests without a good answer are ticks at the bottom."
    return _section("Latency over time", about, chart(x, y, series, ticks))


def _curve(run: Measured) -> str:
    """The latency that each share of the requests does not exceed."""
    ordered = sorted(
        1e3 * (s.ended_s - s.due_s)
        for s in run.samples
        if s.status == 200 and run.window.begin_s <= s.due_s < run.window.end_s
    )
    # Never beyond what the number of answers supports.
    last = max([q for q in _CURVE if len(ordered) >= 100 / (100 - q)] + [90.0])
    ticks = [(_nines(q), f"{q:g} %") for q in _CURVE if q <= last]
    shares = [100 * (1 - 10 ** (-position / 40)) for position in range(1, 161)]
    points = [(_nines(q), percentile(ordered, round(q, 4))) for q in shares if q <= last + 1e-9]
    x = named_x_axis("share of the requests that were at least as fast", ticks)
    about = f"{load_name(run)}: {len(ordered)} answers, every percentile by nearest rank."
    series = [Series("latency", 1, points)]
    return _section("Percentiles", about, chart(x, y_axis("ms", points[-1][1]), series))


def _nines(percent: float) -> float:
    return -log10(1 - percent / 100)


def _stages(run: Measured) -> str:
    """Where the mean latency went: a bar of the service's own stages and the rest."""
    server = run.figures.server_ms
    if "total" not in server:
        return ""
    stages = [(name, server[name]["mean"]) for name in _STAGES if name in server]
    within = sum(value for _, value in stages)
    stages.append(("rest of the service", max(server["total"]["mean"] - within, 0.0)))
    stages.append(("outside the service", max(server["outside"]["mean"], 0.0)))
    whole = sum(value for _, value in stages) or 1.0
    bars, entries, at_px = [], [], 0.0
    for index, (name, value) in enumerate(stages):
        width_px = 720 * value / whole
        colour = 1 + index % 8
        bars.append(
            f'<rect class="bar c{colour}" x="{at_px:.1f}" y="0" width="{width_px:.1f}" height="28">'
            f"<title>{escape(name)}: {value:.1f} ms</title></rect>"
        )
        entries.append((f"{name} {value:.1f} ms", colour))
        at_px += width_px
    svg = f'<svg viewBox="0 0 720 28" role="img">{"".join(bars)}</svg>'
    about = f"{load_name(run)}: mean of the client's latency, by the service's Server-Timing."
    return _section("Where the time goes", about, svg + legend(entries))
