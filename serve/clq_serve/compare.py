"""How far two sets of candidates for the same images are apart."""

import math

import numpy as np

from clq_serve.candidates import Candidates

CUT_OFF_MARGIN = 0.01  # candidates this close above a cut-off may be on one side only


def candidate_difference(
    a: Candidates, b: Candidates, score_floor: float, margin: float = CUT_OFF_MARGIN
) -> tuple[float, float]:
    """(largest difference of a score, largest difference of a box coordinate in pixels).

    The order of candidates carries no meaning when scores are nearly equal, so the two sides are
    compared as sets, image by image and in both directions.  Every candidate that counts takes the
    nearest candidate of the same label of the other side that is still free, strongest first;
    nearest means the smallest |score difference| + largest |coordinate difference|.  The score
    difference is the largest of scores, cls_scores and qualities.

    A candidate counts if its score is at least `score_floor + margin` and, where all K slots of
    the other side are taken, at least the last score over there + margin: below that it may have
    been cut off.

    a, b         Candidates of the same N images; K may differ
    score_floor  in [0, 1]; candidates below it do not matter
    returns      (0.0, 0.0) if nothing counts; (inf, inf) if one that counts has no partner

    Raises ValueError if the sides hold different numbers of images.
    """
    if len(a.scores) != len(b.scores):
        raise ValueError(f"{len(a.scores)} images on one side, {len(b.scores)} on the other")
    worst_score, worst_box_px = 0.0, 0.0
    for image in range(len(a.scores)):
        one = Candidates(*(array[image] for array in a))
        other = Candidates(*(array[image] for array in b))
        for mine, theirs in ((one, other), (other, one)):
            score, box_px = _one_way(mine, theirs, score_floor, margin)
            worst_score, worst_box_px = max(worst_score, score), max(worst_box_px, box_px)
    return worst_score, worst_box_px


def _one_way(
    mine: Candidates, theirs: Candidates, score_floor: float, margin: float
) -> tuple[float, float]:
    """Like candidate_difference, for one image, (K, ...), and the candidates of `mine` only."""
    cut_off = float(theirs.scores.min()) if theirs.scores.size else 0.0  # 0 when a slot is empty
    counts = np.flatnonzero(mine.scores >= max(score_floor, cut_off) + margin)
    free = theirs.scores > 0
    worst_score, worst_box_px = 0.0, 0.0
    for k in counts[np.argsort(-mine.scores[counts], kind="stable")]:
        partners = np.flatnonzero(free & (theirs.labels == mine.labels[k]))
        if partners.size == 0:
            return math.inf, math.inf
        score_off = np.max(
            [
                np.abs(getattr(theirs, name)[partners] - getattr(mine, name)[k])
                for name in ("scores", "cls_scores", "qualities")
            ],
            axis=0,
        )
        box_off_px = np.abs(theirs.boxes[partners] - mine.boxes[k]).max(axis=-1)
        nearest = int(np.argmin(score_off + box_off_px))
        free[partners[nearest]] = False
        worst_score = max(worst_score, float(score_off[nearest]))
        worst_box_px = max(worst_box_px, float(box_off_px[nearest]))
    return worst_score, worst_box_px
