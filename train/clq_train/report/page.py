"""An assessment as one HTML file that needs nothing else: no script, no font, no network."""

import importlib.resources
from collections.abc import Sequence
from html import escape

from clq_train.assess import Assessment, Localisation
from clq_train.localisation import WORSE_BY_IOU, Rows
from clq_train.measure import IOU_THRESHOLDS, Evaluation
from clq_train.report.charts import (
    Bar,
    Series,
    bars,
    difference_chart,
    heat_map,
    line_chart,
    reliability_chart,
)
from clq_train.report.table import coefficient, percent


def report_page(
    found: Assessment, heading: Sequence[str], by: str | None, pictures: Sequence[str]
) -> str:
    """The page.

    heading   what was measured on what; the first line is the title
    by        key of the image records that named the groups
    pictures  HTML figures of the worst images
    """
    sections = [_headline(found)]
    if found.localisation is not None and found.by_class is not None and found.rows is not None:
        sections.append(
            _knowledge(found.localisation, found.evaluation, found.by_class, found.rows)
        )
    sections += [_classes(found.evaluation), _sizes_and_groups(found.evaluation, by)]
    sections.append(_curves(found))
    if pictures:
        sections.append(_pictures(found, pictures))
    style = importlib.resources.files("clq_train.report").joinpath("style.css").read_text("utf-8")
    title, *rest = (escape(line) for line in heading)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>\n{style}</style></head><body><main>"
        f"<header><h1>{title}</h1>{''.join(f'<p class=soft>{line}</p>' for line in rest)}</header>"
        f"{''.join(sections)}"
        "<footer>AP and AR are COCO's, in percent, with at most 100 detections of a class in an "
        "image. Made by clq-train eval.</footer></main></body></html>\n"
    )


def _headline(found: Assessment) -> str:
    all_, best = found.evaluation, found.best
    figures = [
        ("AP", percent(all_.ap), "mean over IoU 0.50 to 0.95"),
        ("AP50", percent(all_.ap50), "boxes about right"),
        ("AP75", percent(all_.ap75), "boxes that fit"),
        ("AR 100", percent(all_.ar_100), "objects found, whatever their score"),
        (
            "best F1",
            percent(best.f1),
            f"above a score of {best.score:.2f}: precision {percent(best.precision)}, recall "
            f"{percent(best.recall)}, at IoU 0.5",
        ),
    ]
    return _cards(figures)


def _knowledge(of: Localisation, ranking: Evaluation, by_class: Evaluation, rows: Rows) -> str:
    """What this detector is about: whether its scores know how well a box sits."""
    on = of.after_nms.on_object
    spearman = (on.ranking_score.spearman, on.cls_score.spearman)
    error, bias = of.reliability.calibration_error, of.reliability.bias
    figures = [
        (
            "correlation with the true IoU",
            coefficient(spearman[0]),
            f"Spearman, ranking score; class score alone {coefficient(spearman[1])}",
        ),
        (
            "AP75 by ranking score",
            percent(ranking.ap75),
            f"by class score alone {percent(by_class.ap75)}, same candidates",
        ),
        (
            "suppression kept a worse box",
            f"{percent(_known(of.nms.share))} %",
            f"of {of.nms.objects:,} objects; by class score alone "
            f"{percent(_known(of.nms_by_class.share))} %",
        ),
        (
            "calibration error of the quality",
            coefficient(error),
            ""
            if bias is None
            else f"{abs(bias):.3f} too {'high' if bias > 0 else 'low'} on average",
        ),
    ]
    differences = [
        100 * (a - b) for a, b in zip(ranking.ap_by_iou, by_class.ap_by_iou, strict=True)
    ]
    table = _correlations(of)
    shown = rows.on_object()
    maps = "".join(
        _card(
            name,
            heat_map(f"{name} against true IoU", (name, "true IoU"), values, shown.true_ious),
            f"Detections on an object; the stronger the colour, the more. Pearson "
            f"{coefficient(of_score.pearson)}, Spearman {coefficient(of_score.spearman)}.",
        )
        for name, values, of_score in (
            ("class score", shown.cls_scores, on.cls_score),
            ("quality", shown.qualities, on.quality),
            ("ranking score", shown.scores, on.ranking_score),
        )
    )
    return (
        "<section><h2>Does the score know how well a box sits?</h2>"
        "<p class=soft>The ranking score is the class score times a power of the quality, which is "
        "the IoU that the model predicts for its box. The true IoU is the highest with an object "
        "of the same class.</p>"
        f"{_cards(figures)}<div class=grid>"
        + _card(
            "Quality against true IoU",
            reliability_chart("reliability of the predicted IoU", of.reliability.bins),
            f"{of.reliability.boxes:,} detections on an object, in ten bins. On the dashed line "
            "the quality would be right on average.",
        )
        + _card(
            "What ranking by quality gains",
            difference_chart(
                "AP by ranking score minus AP by class score, at each IoU threshold",
                [f"{iou:.2f}" for iou in IOU_THRESHOLDS],
                differences,
            ),
            "Points of AP by ranking score above AP by class score alone, on the same candidates, "
            "at each IoU that a match needs.",
        )
        + f"</div><div class=grid>{maps}</div>"
        + _card("Correlation with the true IoU: Pearson, and Spearman below", table, _definitions())
        + "</section>"
    )


def _correlations(of: Localisation) -> str:
    populations = [
        ("detections", of.after_nms.all),
        ("detections on an object", of.after_nms.on_object),
        ("candidates", of.before_nms.all),
        ("candidates on an object", of.before_nms.on_object),
    ]
    rows = []
    for name, one in populations:
        cells = "".join(
            f"<td>{coefficient(c.pearson)}<small>{coefficient(c.spearman)}</small></td>"
            for c in (one.cls_score, one.quality, one.ranking_score)
        )
        rows.append(f"<tr><th>{name}<small>{one.boxes:,}</small></th>{cells}</tr>")
    head = "<tr><th></th><th>class score</th><th>quality</th><th>ranking score</th></tr>"
    return f"<table class=pairs>{head}{''.join(rows)}</table>"


def _definitions() -> str:
    return (
        "Candidates are all boxes above the score threshold, detections those that the suppression "
        "leaves. A box is on an object from a true IoU of 0.1 on. The suppression kept a worse box "
        "where an object's best candidate (IoU of 0.5 or more) went for one whose IoU is more than "
        f"{WORSE_BY_IOU:g} lower."
    )


def _classes(of: Evaluation) -> str:
    ordered = sorted(of.per_class.items(), key=lambda item: -item[1].ap)
    rows = [Bar(name, c.ap, percent(c.ap), c.ap50, f"{c.objects:,} objects") for name, c in ordered]
    half = (len(rows) + 1) // 2 if len(rows) > 8 else len(rows)
    columns = [part for part in (rows[:half], rows[half:]) if part]
    return (
        "<section><h2>By class</h2><p class=soft>AP, and fainter AP50.</p><div class=grid>"
        + "".join(f"<div class=card>{bars(part)}</div>" for part in columns)
        + "</div></section>"
    )


def _sizes_and_groups(of: Evaluation, by: str | None) -> str:
    sizes = [
        Bar(f"{name}", ap, percent(ap), ar, note)
        for name, note, ap, ar in (
            ("small", f"{of.objects_small:,} objects", of.ap_small, of.ar_small),
            ("medium", f"{of.objects_medium:,} objects", of.ap_medium, of.ar_medium),
            ("large", f"{of.objects_large:,} objects", of.ap_large, of.ar_large),
        )
    ]
    cards = _card(
        "By size of the object",
        bars(sizes),
        "AP, and fainter AR 100. Small is under 32 x 32 px, large from 96 x 96 px on.",
    )
    recalls = [
        Bar(f"{name}", value, percent(value))
        for name, value in (
            ("1 box", of.ar_1),
            ("10 boxes", of.ar_10),
            ("100 boxes", of.ar_100),
        )
    ]
    cards += _card(
        "Average recall", bars(recalls), "By how many detections an image may have of a class."
    )
    if of.per_group:
        groups = [Bar(name, ap, percent(ap)) for name, ap in of.per_group.items()]
        cards += _card(f"By {escape(by or 'group')}", bars(groups), "AP.")
    return f"<section><h2>By size and number</h2><div class=grid>{cards}</div></section>"


def _curves(of: Assessment) -> str:
    recalls = [step / 100 for step in range(101)]
    curves = [
        Series(
            f"IoU {iou}", number, [(r, max(p, 0.0)) for r, p in zip(recalls, values, strict=True)]
        )
        for number, (iou, values) in enumerate(of.curves.items(), 1)
    ]
    points = of.thresholds
    chosen = [
        Series("precision", 1, [(p.score, p.precision) for p in points]),
        Series("recall", 2, [(p.score, p.recall) for p in points]),
        Series("F1", 3, [(p.score, p.f1) for p in points]),
    ]
    return (
        "<section><h2>Precision and recall</h2><div class=grid>"
        + _card(
            "Precision at each recall",
            line_chart("precision against recall", ("recall", "precision"), curves),
            "Mean of the classes, by the IoU that a match needs.",
        )
        + _card(
            "What a score threshold gives",
            line_chart("figures by score threshold", ("score threshold", ""), chosen),
            f"All classes together, at IoU 0.5. F1 is highest at {of.best.score:.2f}, where "
            f"{of.best.detections:,} detections are left.",
        )
        + "</div></section>"
    )


def _pictures(of: Assessment, pictures: Sequence[str]) -> str:
    kinds = (
        ("missed", "missed objects", "dashed"),
        ("wrong", "wrong detections", ""),
        ("right", "right detections", ""),
    )
    choices = "".join(
        f'<label style="--box: var(--{kind})"><input type="checkbox" id="show-{kind}" checked>'
        f'<i class="{line}"></i>{name}</label>'
        for kind, name, line in kinds
    )
    return (
        "<section><h2>The images with the most errors</h2>"
        f"<p class=soft>At a score above {of.best.score:.2f}; right is a detection that has an "
        "object of its class to itself, at IoU 0.5. Point at a box to see what it is; click an "
        "image to enlarge it.</p>"
        f"<div class=choose>{choices}</div><div class=pictures>{''.join(pictures)}</div></section>"
    )


def _cards(figures: Sequence[tuple[str, str, str]]) -> str:
    cells = "".join(
        f"<div><span class=soft>{name}</span><b>{value}</b><small>{note}</small></div>"
        for name, value, note in figures
    )
    return f"<div class=figures>{cells}</div>"


def _card(title: str, content: str, note: str) -> str:
    return f"<div class=card><h3>{title}</h3>{content}<p>{note}</p></div>"


def _known(share: float | None) -> float:
    return -1.0 if share is None else share
