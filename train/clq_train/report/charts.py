"""Charts as inline SVG and bars as HTML; colours are the CSS variables of style.css.

Values are in the charts' own units; pixels are those of the viewBox, y downwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from clq_train.localisation import Bin
from clq_train.matching import Doubles

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 42
CELLS = 20  # of a heat map, each way
COUNTS_PX = 50  # room for the bins' sizes below a reliability diagram
COUNT_PX = 30  # height of the largest

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """A line, with the number of its colour, 1 to 3; the values of both axes are in [0, 1]."""

    name: str
    colour: int
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Bar:
    """A labelled bar: `value` and the fainter `behind` are shares of the whole width."""

    label: str
    value: float
    text: str
    behind: float = 0.0
    note: str = ""


def line_chart(title: str, axes: tuple[str, str], series: Sequence[Series]) -> str:
    """Lines over the unit square, with a legend.

    axes  labels of x and y
    """
    parts = [_open(title), *_frame(axes)]
    for line in series:
        path = " ".join(f"{_x(a):.1f},{_y(b):.1f}" for a, b in line.points)
        parts.append(f'<polyline class="line c{line.colour}" points="{path}"/>')
    legend = "".join(
        f'<span><i class="c{line.colour}"></i>{escape(line.name)}</span>' for line in series
    )
    return "\n".join([*parts, "</svg>"]) + f'<p class="legend">{legend}</p>'


def difference_chart(title: str, labels: Sequence[str], values: Sequence[float]) -> str:
    """Bars up and down from a line at zero, with their values; the highest fills the height.

    One that is under 1 does not: noise is not blown up.
    """
    most = max(1.0, *(abs(value) for value in values))
    middle, reach = HEIGHT / 2 - 10, HEIGHT / 2 - 44
    step = (WIDTH - 8) / len(values)
    parts = [
        _open(title),
        f'<line class="axis" x1="4" x2="{WIDTH - 4}" y1="{middle}" y2="{middle}"/>',
    ]
    for number, (label, value) in enumerate(zip(labels, values, strict=True)):
        x, height = 4 + (number + 0.5) * step, abs(value) / most * reach
        top = middle - height if value >= 0 else middle
        kind = "better" if value >= 0 else "worse"
        parts.append(
            f'<rect class="{kind}" x="{x - step * 0.31:.1f}" y="{top:.1f}" '
            f'width="{step * 0.62:.1f}" height="{max(height, 1):.1f}" rx="2"/>'
        )
        beside = top - 6 if value >= 0 else top + height + 14
        parts.append(f'<text class="mid" x="{x:.1f}" y="{beside:.1f}">{_signed(value)}</text>')
        parts.append(f'<text class="mid soft" x="{x:.1f}" y="{HEIGHT - 6}">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>"])


def reliability_chart(title: str, bins: Sequence[Bin]) -> str:
    """The mean true IoU of each bin of predicted IoU, against the diagonal, and the bins' sizes."""
    most = max(1, *(one.boxes for one in bins))
    parts = [_open(title, COUNTS_PX), *_frame(("predicted IoU (quality)", "true IoU"), COUNTS_PX)]
    floor = HEIGHT + COUNTS_PX - BOTTOM + 8
    for one in bins:
        if one.mean_true_iou is None or one.mean_quality is None:
            continue
        left, width = _x(one.low) + 1.5, _x(one.high) - _x(one.low) - 3
        top, share = _y(one.mean_true_iou), one.boxes / most
        told = (
            f"{one.boxes:,} boxes with a quality of {one.low:.1f} to {one.high:.1f}: mean quality "
            f"{one.mean_quality:.3f}, mean true IoU {one.mean_true_iou:.3f}"
        )
        parts.append(
            f'<g><title>{told}</title><rect class="fill" x="{left:.1f}" y="{top:.1f}" '
            f'width="{width:.1f}" height="{_y(0) - top:.1f}"/>'
            f'<rect class="count" x="{left:.1f}" y="{floor - share * COUNT_PX:.1f}" '
            f'width="{width:.1f}" height="{share * COUNT_PX:.1f}"/>'
            f'<circle class="dot" cx="{_x(one.mean_quality):.1f}" cy="{top:.1f}" r="3.5"/></g>'
        )
    parts.append(
        f'<line class="ideal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>'
        f'<text class="end soft" x="{LEFT - 6}" y="{floor}">boxes</text>'
    )
    return "\n".join([*parts, "</svg>"])


def heat_map(title: str, axes: tuple[str, str], across: Doubles, up: Doubles) -> str:
    """How many boxes are at each pair of two values in [0, 1]; the opacity grows as the root."""
    counts, _, _ = np.histogram2d(across, up, bins=CELLS, range=((0, 1), (0, 1)))
    most = max(1.0, float(counts.max()))
    width, height = (_x(1) - _x(0)) / CELLS, (_y(0) - _y(1)) / CELLS
    parts = [_open(title), *_frame(axes, grid=False)]
    for (i, j), number in np.ndenumerate(counts):
        if number:
            parts.append(
                f'<rect class="heat" x="{_x(i / CELLS):.1f}" y="{_y((j + 1) / CELLS):.1f}" '
                f'width="{width:.1f}" height="{height:.1f}" '
                f'opacity="{max(0.04, (number / most) ** 0.5):.2f}"/>'
            )
    return "\n".join([*parts, "</svg>"])


def bars(rows: Sequence[Bar]) -> str:
    """Horizontal bars, one row each, as HTML: text keeps its size on a narrow page."""
    lines = [
        f"<tr><th>{escape(bar.label)}<small>{escape(bar.note)}</small></th>"
        f'<td class="track"><i class="behind" style="width:{100 * max(bar.behind, 0):.1f}%"></i>'
        f'<i style="width:{100 * max(bar.value, 0):.1f}%"></i></td>'
        f"<td>{escape(bar.text)}</td></tr>"
        for bar in rows
    ]
    return '<table class="bars">' + "".join(lines) + "</table>"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"


def _open(title: str, more_px: int = 0) -> str:
    name = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT + more_px}" role="img" aria-label="{name}">'


def _frame(axes: tuple[str, str], more_px: int = 0, grid: bool = True) -> list[str]:
    """Ticks at every fifth of the unit square, and the labels of its axes."""
    parts = []
    for tenth in range(0, 11, 2):
        value = tenth / 10
        x, y = _x(value), _y(value)
        if grid or tenth == 0:
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        parts.append(f'<text class="end soft" x="{LEFT - 6}" y="{y + 4:.1f}">{value:g}</text>')
        parts.append(f'<text class="mid soft" x="{x:.1f}" y="{_y(0) + 16:.1f}">{value:g}</text>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (_y(0) + _y(1)) / 2
    parts.append(
        f'<text class="mid" x="{middle_x}" y="{HEIGHT + more_px - 6}">{escape(axes[0])}</text>'
        f'<text class="mid" x="12" y="{middle_y}" transform="rotate(-90 12 {middle_y})">'
        f"{escape(axes[1])}</text>"
    )
    return parts


def _x(value: float) -> float:
    return LEFT + value * (WIDTH - LEFT - RIGHT)


def _y(value: float) -> float:
    return HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM)
