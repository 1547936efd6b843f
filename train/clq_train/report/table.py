"""An assessment as lines of text for a terminal."""

from collections.abc import Sequence

from clq_train.assess import Assessment, Localisation
from clq_train.localisation import Correlations
from clq_train.measure import Evaluation

FIGURES = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "small": "ap_small",
    "medium": "ap_medium",
    "large": "ap_large",
    "AR 1": "ar_1",
    "AR 10": "ar_10",
    "AR 100": "ar_100",
}


def table_lines(of: Assessment, by: str | None) -> list[str]:
    """COCO's metrics in percent, then what the scores know; `by` names the groups' key."""
    found = of.evaluation
    rows = [["ranking score", *_figures(found)]]
    if of.by_class is not None:
        rows.append(["class score alone", *_figures(of.by_class)])
    lines = columns([["", *FIGURES], *rows])
    classes = [
        [name, f"{c.objects:,}", *map(percent, (c.ap, c.ap50, c.ap75, c.ar_100))]
        for name, c in found.per_class.items()
    ]
    lines += ["", *columns([["class", "objects", "AP", "AP50", "AP75", "AR 100"], *classes])]
    if found.per_group:
        groups = [[name, percent(ap)] for name, ap in found.per_group.items()]
        lines += ["", *columns([[by or "group", "AP"], *groups])]
    if of.localisation is not None:
        lines += ["", *_localisation_lines(of.localisation)]
    best = of.best
    lines.append(
        f"best F1 {percent(best.f1).strip()} at a score above {best.score:.2f}: precision "
        f"{percent(best.precision).strip()}, recall {percent(best.recall).strip()}"
    )
    return lines


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows with their cells under each other: the first to the left, the rest to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]


def percent(value: float) -> str:
    """A figure in [0, 1] in percent, `none` where there was nothing to measure."""
    return f"{100 * value:.1f}" if value >= 0 else "none"


def coefficient(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _figures(found: Evaluation) -> list[str]:
    return [percent(getattr(found, field)) for field in FIGURES.values()]


def _localisation_lines(of: Localisation) -> list[str]:
    populations = {
        "detections": of.after_nms.all,
        "on an object": of.after_nms.on_object,
        "candidates": of.before_nms.all,
        "on an object ": of.before_nms.on_object,
    }
    head = ["correlation with the true IoU", *populations]
    rows = [["", *(f"{found.boxes:,}" for found in populations.values())]]
    for name, field in (
        ("class score", "cls_score"),
        ("quality", "quality"),
        ("ranking score", "ranking_score"),
    ):
        rows.append([f"  {name}", *(_both(found, field) for found in populations.values())])
    lines = columns([head, *rows])
    if of.has_quality and of.reliability.calibration_error is not None:
        lines.append(
            f"quality of detections on an object: calibration error "
            f"{of.reliability.calibration_error:.3f}, bias {of.reliability.bias or 0:+.3f}"
        )
    if of.nms.share is not None and of.nms_by_class.share is not None:
        lines.append(
            f"suppression kept a worse box of {percent(of.nms.share)} % of {of.nms.objects:,} "
            f"objects, by class score alone of {percent(of.nms_by_class.share)} %"
        )
    return lines


def _both(found: Correlations, field: str) -> str:
    one = getattr(found, field)
    return f"{coefficient(one.pearson)} {coefficient(one.spearman)}"
