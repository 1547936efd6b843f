"""How far the candidates of one runtime are from another's, matched by the overlap of boxes."""

from dataclasses import dataclass

import numpy as np

from clq_serve.candidates import Candidates, Floats

SAME_BOX_IOU = 0.5  # boxes that overlap less are two objects
SCORE_FLOOR = 0.01  # weaker candidates are not compared: no threshold lets them through


@dataclass(frozen=True, slots=True)
class Deltas:
    """Largest differences of one image.

    compared        candidates of the two sides that counted
    score           largest difference of scores, cls_scores or qualities of a pair
    box_px          largest difference of a coordinate of a pair
    labels_changed  candidates whose partner is of another class, or that have none
    """

    compared: int
    score: float
    box_px: float
    labels_changed: int


def image_deltas(a: Candidates, b: Candidates, margin: float) -> Deltas:
    """The differences of two sets of candidates (K, ...) of one image.

    In both directions, strongest first, each candidate that counts takes the free candidate of its
    class on the other side whose box overlaps its own most.  Not slot by slot: near ties swap
    places.  It counts if its score is at least SCORE_FLOOR + margin and, where all slots of the
    other side are taken, the last score over there + margin; below that it may have been cut off.
    """
    ways = [_one_way(a, b, margin), _one_way(b, a, margin)]
    return Deltas(
        sum(way.compared for way in ways),
        max(way.score for way in ways),
        max(way.box_px for way in ways),
        sum(way.labels_changed for way in ways),
    )


def _one_way(mine: Candidates, theirs: Candidates, margin: float) -> Deltas:
    cut_off = float(theirs.scores.min()) if theirs.scores.size else 0.0  # 0 when a slot is empty
    counts = np.flatnonzero(mine.scores >= max(SCORE_FLOOR, cut_off) + margin)
    overlap = _iou(mine.boxes[counts], theirs.boxes)
    free = theirs.scores > 0
    usable = (mine.labels[counts, None] == theirs.labels) & (overlap >= SAME_BOX_IOU)
    score = box_px = 0.0
    changed = 0
    for row in np.argsort(-mine.scores[counts], kind="stable"):
        partners = np.flatnonzero(free & usable[row])
        if partners.size == 0:
            changed += 1
            continue
        partner = partners[np.argmax(overlap[row, partners])]
        free[partner] = False
        one = counts[row]
        for name in ("scores", "cls_scores", "qualities"):
            off = abs(float(getattr(mine, name)[one]) - float(getattr(theirs, name)[partner]))
            score = max(score, off)
        box_px = max(box_px, float(np.abs(mine.boxes[one] - theirs.boxes[partner]).max()))
    return Deltas(len(counts), score, box_px, changed)


def _iou(a: Floats, b: Floats) -> Floats:
    """Overlap in [0, 1] of every box of `a` (A, 4) with every one of `b` (B, 4): (A, B)."""
    wide = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    low = np.maximum(wide[0][..., :2], wide[1][..., :2])
    high = np.minimum(wide[0][..., 2:], wide[1][..., 2:])
    inner = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(box[..., 2:] - box[..., :2], 0, None).prod(-1) for box in wide]
    return inner / np.maximum(areas[0] + areas[1] - inner, 1e-9)
