"""An assessment as one HTML file that needs nothing else: no script, no font, no network."""

import importlib.resources
from collections.abc import Sequence
from html import escape

from clq_train.assess import Assessment
from clq_train.measure import Evaluation
from clq_train.report.charts import Bar, Series, bars, line_chart
from clq_train.report.html import card, cards
from clq_train.report.knowledge import knowledge_section
from clq_train.report.table import percent


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
            knowledge_section(found.localisation, found.evaluation, found.by_class, found.rows)
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
        ("AR 100", percent(all_.ar_100), "recall, mean over IoU 0.50 to 0.95"),
        (
            "best F1",
            percent(best.f1),
            f"above a score of {best.score:.2f}: precision {percent(best.precision)}, recall "
            f"{percent(best.recall)}, at IoU 0.5",
        ),
    ]
    return cards(figures)


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
    cards = card(
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
    cards += card(
        "Average recall", bars(recalls), "By how many detections an image may have of a class."
    )
    if of.per_group:
        groups = [Bar(name, ap, percent(ap)) for name, ap in of.per_group.items()]
        cards += card(f"By {escape(by or 'group')}", bars(groups), "AP.")
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
        + card(
            "Precision at each recall",
            line_chart("precision against recall", ("recall", "precision"), curves),
            "Mean of the classes, by the IoU that a match needs.",
        )
        + card(
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
