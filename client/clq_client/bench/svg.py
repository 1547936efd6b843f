"""A chart as inline SVG: axes, lines, marks.  Colours are CSS variables of the page.

Values of a chart are in its own units; pixels are those of the viewBox, y downwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 44

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: values from low to high over pixels from begin_px to end_px.

    ticks  (value, its label); log: decades are equally long, low > 0
    """

    label: str
    low: float
    high: float
    begin_px: float
    end_px: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def px(self, value: float) -> float:
        """The pixel of a value; values outside are moved to the nearest end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = (log10(value) - log10(self.low)) / (log10(self.high) - log10(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin_px + share * (self.end_px - self.begin_px)


@dataclass(frozen=True, slots=True)
class Series:
    """A line with its name and the number of its colour, 1 to 5; dashed for a limit."""

    name: str
    colour: int
    points: Sequence[Point]
    dashed: bool = False
    marks: bool = False


def x_axis(label: str, low: float, high: float) -> Axis:
    """A linear axis along the bottom."""
    high = high if high > low else low + 1
    return Axis(label, low, high, LEFT, WIDTH - RIGHT, False, _linear_ticks(low, high))


def named_x_axis(label: str, ticks: Sequence[tuple[float, str]]) -> Axis:
    """A linear axis along the bottom, from the first to the last of the given ticks."""
    return Axis(label, ticks[0][0], ticks[-1][0], LEFT, WIDTH - RIGHT, False, tuple(ticks))


def y_axis(label: str, high: float) -> Axis:
    """A linear axis at the left, from 0 to the first tick that is not below `high`."""
    high = high if high > 0 else 1.0
    ticks = _linear_ticks(0.0, high)
    if ticks[-1][0] < high:
        ticks = _linear_ticks(0.0, ticks[-1][0] + ticks[1][0])
    return Axis(label, 0.0, ticks[-1][0], HEIGHT - BOTTOM, TOP, False, ticks)


def log_y_axis(label: str, low: float, high: float) -> Axis:
    """A logarithmic axis at the left that ends on 1, 2 or 5 times a power of ten; low > 0."""
    steps = [
        m * 10.0**e for e in range(floor(log10(low)), ceil(log10(high)) + 1) for m in (1, 2, 5)
    ]
    begin = max((s for s in steps if s <= low), default=low)
    end = min((s for s in steps if s >= high), default=high)
    end = end if end > begin else begin * 10
    ticks = [s for s in steps if begin <= s <= end]
    if len(ticks) > 8:
        ticks = [s for s in ticks if round(log10(s), 6).is_integer()]
    shown = tuple((s, f"{s:g}") for s in ticks)
    return Axis(label, begin, end, HEIGHT - BOTTOM, TOP, True, shown)


def chart(x: Axis, y: Axis, series: Sequence[Series], extra: str = "") -> str:
    """The chart as an <svg>, with its legend below as HTML."""
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', *_grid(x, y), extra]
    for line in series:
        points = [(x.px(a), y.px(b)) for a, b in line.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(f'<polyline class="line c{line.colour}" points="{path}"{dash}/>')
        if line.marks:
            parts += [
                f'<circle class="mark c{line.colour}" cx="{px:.1f}" cy="{py:.1f}" r="4">'
                f"<title>{escape(line.name)}: {b:.4g} at {a:.4g}</title></circle>"
                for (px, py), (a, b) in zip(points, line.points, strict=True)
            ]
    parts.append("</svg>")
    return "\n".join(parts) + legend([(line.name, line.colour) for line in series])


def legend(entries: Sequence[tuple[str, int]]) -> str:
    """Names with their colours."""
    items = "".join(
        f'<span><i class="swatch c{colour}"></i>{escape(name)}</span>' for name, colour in entries
    )
    return f'<p class="legend">{items}</p>'


def _grid(x: Axis, y: Axis) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value, label in y.ticks:
        py = y.px(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{py + 4:.1f}" text-anchor="end">{label}</text>')
    for value, label in x.ticks:
        px = x.px(value)
        parts.append(f'<line class="grid" x1="{px:.1f}" x2="{px:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{px:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
    parts.append(
        f'<text x="{middle_x:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>'
    )
    parts.append(
        f'<text x="14" y="{middle_y:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle_y:.0f})">{escape(y.label)}</text>'
    )
    return parts


def _linear_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Three to six multiples of 1, 2 or 5 times a power of ten in [low, high], with labels."""
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return tuple((i * step, f"{i * step:.6g}") for i in range(first, last + 1))
