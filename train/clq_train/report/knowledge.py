"""The section on this detector's own question: does the score know how well a box sits?"""

from clq_train.assess import Localisation
from clq_train.localisation import ON_OBJECT_IOU, REACHED_IOU, WORSE_BY_IOU, Rows, Suppression
from clq_train.measure import IOU_THRESHOLDS, Evaluation
from clq_train.report.charts import difference_chart, heat_map, reliability_chart
from clq_train.report.html import card, cards
from clq_train.report.table import coefficient, percent


def knowledge_section(
    of: Localisation, ranking: Evaluation, by_class: Evaluation, rows: Rows
) -> str:
    """The section, as HTML.

    ranking, by_class  COCO's metrics of the same candidates by either score
    rows               of all detections
    """
    if of.has_quality:
        content = (
            "<p class=soft>The ranking score is the class score times a power of the quality, the "
            "IoU that the model predicts for its box. The true IoU is the highest with an object "
            "of the same class.</p>"
            f"{_figures(of, ranking, by_class)}"
            f"<div class=grid>{_reliability(of)}{_gains(ranking, by_class)}</div>"
            f"<div class=grid>{_maps(of, rows)}</div>"
        )
    else:
        content = (
            "<p class=soft>This model gives every box the same quality: its ranking score is its "
            "class score.</p>"
        )
    return (
        "<section><h2>Does the score know how well a box sits?</h2>"
        f"{content}{_correlations(of)}</section>"
    )


def _figures(of: Localisation, ranking: Evaluation, by_class: Evaluation) -> str:
    on, reliability = of.after_nms.on_object, of.reliability
    bias = ""
    if reliability.bias is not None:
        side = "high" if reliability.bias > 0 else "low"
        bias = f"{abs(reliability.bias):.3f} too {side} on average"
    return cards(
        [
            (
                "correlation with the true IoU",
                coefficient(on.ranking_score.spearman),
                f"Spearman, ranking score; class score alone {coefficient(on.cls_score.spearman)}",
            ),
            (
                "AP75 by ranking score",
                percent(ranking.ap75),
                f"by class score alone {percent(by_class.ap75)}, same candidates",
            ),
            (
                "suppression kept a worse box",
                _share(of.nms),
                f"of {of.nms.objects:,} objects; by class score alone {_share(of.nms_by_class)}",
            ),
            (
                "calibration error of the quality",
                coefficient(reliability.calibration_error),
                bias,
            ),
        ]
    )


def _reliability(of: Localisation) -> str:
    return card(
        "Quality against true IoU",
        reliability_chart("reliability of the predicted IoU", of.reliability.bins),
        f"{of.reliability.boxes:,} detections on an object, in ten bins. On the dashed line the "
        "quality would be right on average.",
    )


def _gains(ranking: Evaluation, by_class: Evaluation) -> str:
    pairs = zip(ranking.ap_by_iou, by_class.ap_by_iou, strict=True)
    return card(
        "What ranking by quality gains",
        difference_chart(
            "AP by ranking score minus AP by class score, at each IoU threshold",
            [f"{iou:.2f}" for iou in IOU_THRESHOLDS],
            [100 * (mine - other) for mine, other in pairs],
        ),
        "Points of AP by ranking score above AP by class score alone, on the same candidates, at "
        "each IoU that a match needs.",
    )


def _maps(of: Localisation, rows: Rows) -> str:
    shown, on = rows.on_object(), of.after_nms.on_object
    return "".join(
        card(
            name,
            heat_map(f"{name} against true IoU", (name, "true IoU"), values, shown.true_ious),
            "Detections on an object; the stronger the colour, the more. Pearson "
            f"{coefficient(known.pearson)}, Spearman {coefficient(known.spearman)}.",
        )
        for name, values, known in (
            ("class score", shown.cls_scores, on.cls_score),
            ("quality", shown.qualities, on.quality),
            ("ranking score", shown.scores, on.ranking_score),
        )
    )


def _correlations(of: Localisation) -> str:
    populations = [
        ("detections", of.after_nms.all),
        ("detections on an object", of.after_nms.on_object),
        ("candidates", of.before_nms.all),
        ("candidates on an object", of.before_nms.on_object),
    ]
    lines = []
    for name, one in populations:
        cells = "".join(
            f"<td>{coefficient(known.pearson)}<small>{coefficient(known.spearman)}</small></td>"
            for known in (one.cls_score, one.quality, one.ranking_score)
        )
        lines.append(f"<tr><th>{name}<small>{one.boxes:,}</small></th>{cells}</tr>")
    head = "<tr><th></th><th>class score</th><th>quality</th><th>ranking score</th></tr>"
    return card(
        "Correlation with the true IoU: Pearson, and Spearman below",
        f"<table class=pairs>{head}{''.join(lines)}</table>",
        "Candidates are all boxes above the score threshold, detections those that the suppression "
        f"leaves. A box is on an object from a true IoU of {ON_OBJECT_IOU:g} on. The suppression "
        f"kept a worse box where an object's best candidate (IoU of {REACHED_IOU:g} or more) went "
        f"for one whose IoU is more than {WORSE_BY_IOU:g} lower.",
    )


def _share(of: Suppression) -> str:
    return "none" if of.share is None else f"{percent(of.share)} %"
