"""The statistics of splits as lines of text for a terminal."""

from collections.abc import Callable, Sequence

from clq_train.data_stats import SplitStats
from clq_train.report.table import columns

BROKEN_SHOWN = 20


def stats_lines(stats: dict[str, SplitStats], hints: Sequence[str]) -> list[str]:
    """A column a split: counts, percentiles, boxes a class; then what is broken, and hints."""
    splits = list(stats.values())

    def row(name: str, value: Callable[[SplitStats], str]) -> list[str]:
        return [name, *(value(one) for one in splits)]

    lines = columns(
        [
            ["", *stats],
            row("images", lambda s: f"{s.images:,}"),
            row("  without boxes", lambda s: f"{s.images_without_boxes:,}"),
            row("boxes", lambda s: f"{s.boxes:,}"),
            row("  small, under 32 px", lambda s: share(s.small, s.boxes)),
            row("  medium, under 96 px", lambda s: share(s.medium, s.boxes)),
            row("  large", lambda s: share(s.large, s.boxes)),
            row("left out: dropped, crowds", lambda s: f"{s.dropped:,}, {s.crowds:,}"),
            row("broken entries", lambda s: f"{len(s.broken):,}"),
        ]
    )
    lines += ["", "least, 5 %, median, 95 %, most:"]
    lines += columns(
        [
            row("side of a box, px", lambda s: spread(s.side_px)),
            row("  in the network's input", lambda s: spread(s.input_side_px)),
            row("width / height of a box", lambda s: spread(s.aspect)),
            row("boxes an image", lambda s: spread(s.boxes_an_image)),
            row("width of an image, px", lambda s: spread(s.image_width_px)),
            row("height of an image, px", lambda s: spread(s.image_height_px)),
        ]
    )
    lines += ["", "boxes, their share, images that show one:"]
    lines += columns([row(name, class_of(name)) for name in splits[0].classes])
    for split, one in stats.items():
        if one.broken:
            lines += [
                "",
                f"{split}: {len(one.broken):,} broken entries",
                *one.broken[:BROKEN_SHOWN],
            ]
        if len(one.broken) > BROKEN_SHOWN:
            lines.append(f"... and {len(one.broken) - BROKEN_SHOWN:,} more")
    if hints:
        lines += ["", *(f"hint: {hint}" for hint in hints)]
    return lines


def class_of(name: str) -> Callable[[SplitStats], str]:
    def of(stats: SplitStats) -> str:
        found = stats.classes[name]
        return f"{share(found.boxes, stats.boxes)} {found.images:6,}"

    return of


def share(count: int, of: int) -> str:
    return f"{count:,} {100 * count / of if of else 0:5.1f} %"


def spread(values: dict[int, float]) -> str:
    return " ".join(f"{values[p]:6.4g}" for p in (0, 5, 50, 95, 100)) if values else "-"
