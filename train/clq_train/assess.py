"""Everything that an evaluation tells: COCO's metrics, what the scores know, where errors are."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from clq_serve.candidates import Candidates
from clq_serve.detector import Detections
from clq_serve.nms import ClassNms
from clq_train.evaluate import Found
from clq_train.localisation import (
    Correlations,
    Reliability,
    Rows,
    Suppression,
    correlations,
    iou_losses,
    join,
    reliability,
    rows,
    suppression,
)
from clq_train.matching import Doubles, Flags, Indices, match, overlaps
from clq_train.measure import (
    ALL,
    IOU_THRESHOLDS,
    MAX_100,
    Evaluation,
    Result,
    count,
    group_aps,
    mean_measured,
    summarise,
)
from clq_train.results import coco_results, picked
from clq_train.thresholds import Operating, best_operating, operating_points
from clq_train.truth import ImageObjects, Tree, objects_of

RIGHT_IOU = 0.5  # a detection is right if COCO's rule gives it an object at this IoU
CURVE_IOUS = (0.5, 0.75, 0.9)


@dataclass(frozen=True, slots=True)
class Population:
    """Correlations with the true IoU, over all boxes and over those that are on an object."""

    all: Correlations
    on_object: Correlations


@dataclass(frozen=True, slots=True)
class Localisation:
    """What the scores know about the true IoU, and what the suppression makes of it.

    after_nms       the detections
    before_nms      the candidates that they were chosen from
    reliability     quality against true IoU, of the detections that are on an object
    nms             of the ranking score, which is what is served
    nms_by_class    if it went through the same candidates by their class score
    has_quality     whether quality differs between boxes: not without a branch for it
    """

    after_nms: Population
    before_nms: Population
    reliability: Reliability
    nms: Suppression
    nms_by_class: Suppression
    has_quality: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """The detections of one image, by descending score, beside its objects.

    got  (D,) index of each detection's object or crowd region, -1 for a wrong one
    """

    image_id: int
    found: Detections
    objects: ImageObjects
    got: Indices

    def above(self, score: float) -> "Outcome":
        """Only the detections with a higher score; which objects they have does not change."""
        n = int((self.found.scores > score).sum())
        first = picked(self.found, slice(n))
        return Outcome(self.image_id, first, self.objects, self.got[:n])

    @property
    def excused(self) -> Flags:
        """(D,) whether a detection is neither right nor wrong: it is in a crowd region."""
        return np.isin(self.got, np.flatnonzero(self.objects.crowd))

    @property
    def right(self) -> Flags:
        """(D,) whether a detection has an object of its own."""
        return (self.got >= 0) & ~self.excused

    @property
    def wrong(self) -> Flags:
        """(D,) whether a detection has nothing."""
        return self.got < 0

    @property
    def missed(self) -> Flags:
        """(M,) which objects have no detection."""
        return ~self.objects.crowd & ~np.isin(np.arange(len(self.objects.crowd)), self.got)


@dataclass(frozen=True, slots=True)
class Assessment:
    """The whole result.

    by_class      COCO's metrics if the same candidates were ranked by their class score alone;
                  None, like localisation and rows, where only detections are known
    curves        precision at recall 0.00, 0.01 .. 1.00, mean of the classes, by IoU threshold
    best          the score threshold with the highest F1
    outcomes      of each image
    rows          the scores of all detections beside their true IoU
    results       all detections in COCO's format
    """

    evaluation: Evaluation
    by_class: Evaluation | None
    localisation: Localisation | None
    curves: dict[str, list[float]]
    thresholds: list[Operating]
    best: Operating
    outcomes: list[Outcome]
    rows: Rows | None
    results: list[Result]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: Evaluation's keys, and the rest beside them."""
        return {
            **asdict(self.evaluation),
            "by_class_score": None if self.by_class is None else asdict(self.by_class),
            "localisation": None if self.localisation is None else asdict(self.localisation),
            "best_threshold": asdict(self.best),
            "precision_recall": self.curves,
        }


class Assessor:
    """Takes what was found image by image, and gives the Assessment at the end.

    groups   image ids by name, whose AP is wanted as well
    nms_iou  threshold of the suppression
    """

    def __init__(
        self, truth: Tree, classes: list[str], groups: dict[str, set[int]], nms_iou: float
    ) -> None:
        self._truth, self._classes, self._groups = truth, classes, groups
        self._nms, self._nms_iou = ClassNms(), nms_iou
        self._objects = objects_of(truth)
        self._results: list[Result] = []
        self._by_class: list[Result] = []
        self._outcomes: list[Outcome] = []
        self._after: list[Rows] = []
        self._before: list[Rows] = []
        self._losses: tuple[list[Doubles], list[Doubles]] = [], []

    def add(self, image_id: int, found: Found) -> None:
        """What a model found in one image."""
        objects = self._objects[image_id]
        overlap = self._judge(image_id, found.detections)
        self._after.append(rows(found.detections, overlap, objects))
        self._by_class += coco_results(image_id, found.by_class)
        candidates = found.candidates
        overlap = overlaps(candidates.boxes, candidates.labels, objects)
        self._before.append(rows(candidates, overlap, objects))
        for ranking, losses in zip(
            (candidates.scores, candidates.cls_scores), self._losses, strict=True
        ):
            kept = self._suppress(candidates, ranking)
            losses.append(iou_losses(candidates, kept, overlap, objects, self._nms_iou))

    def add_detections(self, image_id: int, found: Detections) -> None:
        """Detections of one image whose candidates are not known."""
        self._judge(image_id, found)

    def result(self) -> Assessment:
        """Of all images that were added; the others count as images in which nothing is found."""
        counted = count(self._truth, self._results)
        evaluation = summarise(self._truth, counted, self._classes)
        per_group = group_aps(self._truth, self._results, self._groups)
        by_class = None
        if self._before:
            table = count(self._truth, self._by_class)
            by_class = summarise(self._truth, table, self._classes)
        precision = counted.precision[..., ALL, MAX_100]  # (T, R, C)
        curves = {
            f"{iou:.2f}": [mean_measured(at) for at in precision[IOU_THRESHOLDS.index(iou)]]
            for iou in CURVE_IOUS
        }
        thresholds = self._thresholds()
        return Assessment(
            evaluation=replace(evaluation, per_group=per_group),
            by_class=by_class,
            localisation=self._localisation() if self._before else None,
            curves=curves,
            thresholds=thresholds,
            best=best_operating(thresholds),
            outcomes=self._outcomes,
            rows=join(self._after) if self._before else None,
            results=self._results,
        )

    def _judge(self, image_id: int, found: Detections) -> Doubles:
        """Keeps the outcome of an image; the overlaps of its detections, (D, M)."""
        objects = self._objects[image_id]
        overlap = overlaps(found.boxes, found.labels, objects)
        got = match(overlap, objects, RIGHT_IOU)
        self._outcomes.append(Outcome(image_id, found, objects, got))
        self._results += coco_results(image_id, found)
        return overlap

    def _suppress(self, candidates: Candidates, ranking: np.ndarray) -> Indices:
        return self._nms(
            candidates.boxes, ranking, candidates.labels, self._nms_iou, 0.0, max(1, len(ranking))
        )

    def _thresholds(self) -> list[Operating]:
        scores, right = [np.zeros(0)], [np.zeros(0, np.bool_)]
        for outcome in self._outcomes:
            scores.append(outcome.found.scores[~outcome.excused])
            right.append(outcome.right[~outcome.excused])
        objects = sum(int((~o.crowd).sum()) for o in self._objects.values())
        return operating_points(np.concatenate(scores), np.concatenate(right), objects)

    def _localisation(self) -> Localisation:
        after, before = join(self._after), join(self._before)
        nms, nms_by_class = (
            suppression(np.concatenate([np.zeros(0), *losses])) for losses in self._losses
        )
        return Localisation(
            after_nms=Population(correlations(after), correlations(after.on_object())),
            before_nms=Population(correlations(before), correlations(before.on_object())),
            reliability=reliability(after.on_object()),
            nms=nms,
            nms_by_class=nms_by_class,
            has_quality=not before.qualities.size or bool(np.ptp(before.qualities) > 0),
        )
