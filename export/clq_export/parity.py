"""Whether an exported model gives what the torch model gives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clq_export.errors import ParityError
from clq_serve.candidates import Candidates
from clq_serve.compare import candidate_difference
from clq_serve.detector import Engine
from clq_serve.preprocess import Pixels

MAX_SCORE = 1e-4
MAX_BOX_PX = 0.05
# Candidates this close to the last slot may be in on one side and out on the other.
CUT_OFF = 1e-3


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest differences over everything that was compared."""

    score: float
    box_px: float
    inputs: int


def check_parity(
    exported: Engine, reference: Engine, golden: Sequence[Pixels], stride: int
) -> Parity:
    """Compares on the golden inputs, on noise of two other sizes, and in batches of three.

    golden   [(H, W, 3) uint8], prepared inputs
    stride   largest stride of the model

    Raises ParityError if a score differs by more than MAX_SCORE or a box by more than MAX_BOX_PX,
    or if an image in a batch gets something else than alone.
    """
    worst_score = worst_box = 0.0
    count = 0
    for name, batch in _inputs(golden, stride):
        ours, theirs = exported.run(batch), reference.run(batch)
        _compare(name, ours, theirs)
        score, box = difference(ours, theirs)
        worst_score, worst_box = max(worst_score, score), max(worst_box, box)
        if len(batch) > 1:
            for i in range(len(batch)):
                alone = exported.run(batch[i : i + 1])
                inside = Candidates(*(array[i : i + 1] for array in ours))
                _compare(f"{name}, image {i} alone", alone, inside)
        count += 1
    return Parity(worst_score, worst_box, count)


def difference(a: Candidates, b: Candidates) -> tuple[float, float]:
    """Largest difference of a score, and of a box coordinate in pixels, as sets of candidates.

    The sorted ranking scores are compared slot by slot as well: near ties may swap places, but not
    values.
    """
    score, box = candidate_difference(a, b, score_floor=0.0, margin=CUT_OFF)
    ranked = np.abs(np.sort(a.scores, 1) - np.sort(b.scores, 1)).max()
    return max(score, float(ranked)), box


def _compare(name: str, ours: Candidates, theirs: Candidates) -> None:
    score, box = difference(ours, theirs)
    if not (score <= MAX_SCORE and box <= MAX_BOX_PX):
        raise ParityError(
            f"{name}: the exported model differs from torch by {score:.2g} of score "
            f"(accepted: {MAX_SCORE:g}) and {box:.2g} px (accepted: {MAX_BOX_PX:g})"
        )


def _inputs(golden: Sequence[Pixels], stride: int) -> Iterator[tuple[str, Pixels]]:
    rng = np.random.default_rng(0)
    for i, pixels in enumerate(golden):
        yield f"golden image {i}", pixels[None]
        yield f"golden image {i} in a batch", np.stack([pixels, pixels[::-1], pixels[:, ::-1]])
    for rows, cols in ((1, 2), (5, 3)):
        for count in (1, 3):
            shape = (count, rows * stride, cols * stride, 3)
            yield f"noise of shape {shape}", rng.integers(0, 256, shape, dtype=np.uint8)
