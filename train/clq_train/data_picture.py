"""The statistics of splits as one picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from clq_train.config import Config
from clq_train.data_stats import Measures, SplitStats

COLOURS = ("#1f6fb4", "#d9742b", "#3b9b6d", "#8a5fb0", "#7a7a7a")
FINE, INK = "#b9bfc6", "#30363d"


def draw_stats(
    stats: dict[str, SplitStats], measures: dict[str, Measures], config: Config, path: Path
) -> None:
    """Writes a PNG: boxes a class, sizes, shapes, boxes an image, image sizes, where boxes lie."""
    classes = config.data.classes
    height = max(8.5, 4.6 + 0.24 * len(classes))
    figure = Figure(figsize=(15, height), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[height - 4.2, 4.2])
    (by_class, sizes), (shapes, crowding, images, places) = (
        top.subplots(1, 2),
        bottom.subplots(1, 4),
    )
    draw_classes(by_class, stats, classes)
    draw_sizes(sizes, measures, config)
    for axes, values, title, label in (
        (shapes, aspects(measures), "Shape of the boxes", "width / height"),
        (crowding, counts(measures), "Boxes an image", "boxes"),
    ):
        draw_spread(axes, values, label)
        axes.set_title(title)
    draw_images(images, measures)
    draw_places(places, measures)
    counted = ", ".join(f"{k} {s.images:,} images {s.boxes:,} boxes" for k, s in stats.items())
    figure.suptitle(f"{config.name}: {counted}", color=INK, fontsize=13)
    figure.savefig(path, format="png", dpi=100)


def draw_classes(axes: Axes, stats: dict[str, SplitStats], classes: Sequence[str]) -> None:
    """A bar a class for the first split, from the most frequent down; a dot for each other."""
    first, *others = stats
    order = sorted(classes, key=lambda name: stats[first].classes[name].boxes)
    shares = {
        split: [100 * one.classes[name].boxes / max(1, one.boxes) for name in order]
        for split, one in stats.items()
    }
    bars = axes.barh(order, shares[first], 0.7, color=colour(0), alpha=0.6)
    counts = [f"{stats[first].classes[name].boxes:,}" for name in order]
    longest = [max(values) for values in zip(*shares.values(), strict=True)]
    for bar, count, end in zip(bars, counts, longest, strict=True):
        at = (end, bar.get_y() + bar.get_height() / 2)
        axes.annotate(
            count, at, (8, 0), textcoords="offset points", va="center", fontsize=8, color=INK
        )
    dots = [
        axes.plot(shares[split], order, "o", markersize=5, color=colour(number))[0]
        for number, split in enumerate(others, 1)
    ]
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlim(0, 1.1 * max(longest) or 1)
    axes.set_xlabel(f"share of the split's boxes, %; the number counts those of {first}")
    axes.set_title("Boxes a class")
    axes.legend([bars, *dots], [first, *others], loc="lower right", frameon=False)
    tidy(axes, "x")


def draw_sizes(axes: Axes, measures: dict[str, Measures], config: Config) -> None:
    """Sides in the network's input, beside the cells and anchors that have to find them."""
    values = {split: np.sqrt(one.input_sides.prod(1)) for split, one in measures.items()}
    draw_spread(axes, values, "square root of the area in the network's input, px")
    axes.set_title("Size of the boxes, and the anchors that meet them")
    stride = config.model.strides[0]
    marks = [(stride, "a cell")]
    marks += [
        (s * config.model.head.anchor_scale, f"P{3 + i}")
        for i, s in enumerate(config.model.strides)
    ]
    for at, name in marks:
        axes.axvline(at, color=FINE, linewidth=1, zorder=0)
        axes.annotate(
            f"{name}\n{at:g}",
            (at, 1),
            (3, -3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=INK,
        )


def draw_spread(axes: Axes, values: dict[str, np.ndarray], label: str) -> None:
    """Shares of each split by value, on a logarithmic axis."""
    positive = {split: array[array > 0] for split, array in values.items()}
    ends = [array for array in positive.values() if array.size]
    low, high = (min(a.min() for a in ends), max(a.max() for a in ends)) if ends else (1, 10)
    edges = np.geomspace(low, max(high, low * 1.01) * 1.001, 41)
    for number, (split, array) in enumerate(positive.items()):
        if not array.size:
            continue
        weights = np.full(array.size, 100 / values[split].size)
        style = {"weights": weights, "color": colour(number), "label": split}
        if number == 0:
            axes.hist(
                array, edges, histtype="stepfilled", alpha=0.25, weights=weights, color=colour(0)
            )
        axes.hist(array, edges, histtype="step", linewidth=1.6, **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    axes.set_ylabel("share, %")
    tidy(axes, "y")


def draw_images(axes: Axes, measures: dict[str, Measures]) -> None:
    """A disc a size, its area the share of the first split's images; circles for the others."""
    for number, one in enumerate(measures.values()):
        sizes, counted = np.unique(one.images, axis=0, return_counts=True)
        area = 8 + 900 * counted / max(1, counted.sum())
        if number == 0:
            axes.scatter(*sizes.T, s=area, color=colour(0), alpha=0.45, linewidths=0)
        else:
            axes.scatter(*sizes.T, s=area, facecolors="none", edgecolors=colour(number))
    axes.set_title("Size of the images")
    axes.set_xlabel("width, px")
    axes.set_ylabel("height, px")
    tidy(axes, "both")


def draw_places(axes: Axes, measures: dict[str, Measures]) -> None:
    """Where the centres of the first split's boxes lie."""
    split, one = next(iter(measures.items()))
    grid, _, _ = np.histogram2d(*one.centres.T[::-1], bins=32, range=[[0, 1], [0, 1]])
    axes.imshow(grid, cmap="Blues", extent=(0, 1, 1, 0), interpolation="nearest")
    axes.set_title(f"Centres of the boxes, {split}")
    axes.set_xlabel("share of the width")
    axes.set_ylabel("share of the height")


def aspects(measures: dict[str, Measures]) -> dict[str, np.ndarray]:
    return {split: one.sides[:, 0] / one.sides[:, 1] for split, one in measures.items()}


def counts(measures: dict[str, Measures]) -> dict[str, np.ndarray]:
    return {split: one.counts for split, one in measures.items()}


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def tidy(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=FINE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
