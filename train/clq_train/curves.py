"""The curves of a run as one picture: losses, learning rate, gradient norm, and AP if measured."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from clq_train.errors import DataError, TrainingError
from clq_train.metrics_file import read_metrics
from clq_train.progress import LOSS_TERMS

COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed")
AP_NAMES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
SMOOTHED_SHARE = 1 / 50  # of the run, in a running mean
Doubles = npt.NDArray[np.float64]


def draw_curves(run: Path) -> Path:
    """Draws RUN/curves.png from metrics.csv and eval.csv, and returns it.

    Raises DataError if nothing has been trained there, TrainingError if it can't be written.
    """
    rows, evaluations = read_metrics(run / "metrics.csv"), read_metrics(run / "eval.csv")
    if not rows:
        raise DataError(f"{run / 'metrics.csv'}: no steps to draw")
    figure = Figure(figsize=(12, 7) if evaluations else (15, 4), dpi=120, layout="constrained")
    figure.suptitle(run.resolve().name, x=0.01, ha="left", fontweight="bold")
    panels = (figure.subplots(2, 2) if evaluations else figure.subplots(1, 3)).flatten()
    _noisy(panels[0], "loss", rows, LOSS_TERMS)
    _noisy(panels[1], "gradient norm before clipping", rows, ("grad_norm",))
    _measured(panels[2], "learning rate", rows, {"lr": "lr"})
    if evaluations:
        _measured(panels[3], "average precision on val, %", evaluations, AP_NAMES, 100, "o")
    for panel in panels:
        panel.set(xlabel="step", xlim=(0, float(rows[-1]["step"])))
        panel.grid(color="#e5e7eb", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        if len(panel.get_legend_handles_labels()[1]) > 1:
            panel.legend(frameon=False)
    picture, beside = run / "curves.png", run / ".curves.png.tmp"
    try:
        figure.savefig(beside, format="png")
        os.replace(beside, picture)
    except OSError as error:
        raise TrainingError(f"{picture}: {error.strerror}") from error
    return picture


def _noisy(panel: Axes, title: str, rows: list[dict[str, str]], names: tuple[str, ...]) -> None:
    """Every step faintly, and a running mean; on a logarithmic scale."""
    kept = [name for name in names if name in rows[0]]
    for colour, name in zip(COLOURS, kept, strict=False):
        steps, values = _column(rows, "step"), _column(rows, name)
        # float16 leaves out steps whose gradient is infinite, and a logarithm has no zero.
        usable = np.isfinite(values) & (values > 0)
        steps, values = steps[usable], values[usable]
        width = max(1, round(len(values) * SMOOTHED_SHARE))
        panel.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8, zorder=1)
        if len(values) >= width:
            smooth = np.lib.stride_tricks.sliding_window_view(values, width).mean(1)
            panel.plot(steps[width - 1 :], smooth, color=colour, label=name)
    panel.set(title=title, yscale="log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())


def _measured(
    panel: Axes,
    title: str,
    rows: list[dict[str, str]],
    names: dict[str, str],
    factor: float = 1,
    marker: str = "",
) -> None:
    """Columns times a factor, under their names for a person."""
    for colour, (column, name) in zip(COLOURS, names.items(), strict=False):
        steps, values = _column(rows, "step"), factor * _column(rows, column)
        panel.plot(steps, values, color=colour, marker=marker, markersize=3, label=name)
    panel.set(title=title, ylim=(0, None))


def _column(rows: list[dict[str, str]], name: str) -> Doubles:
    return np.array([float(row[name]) for row in rows])
