"""What a model gives for a batch of images, before non-maximum suppression."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Candidates(NamedTuple):
    """K candidate boxes for each of N images, sorted by descending score.

    boxes       (N, K, 4) float32, x1 y1 x2 y2, pixels of the resized and padded input, not clipped
    scores      (N, K) float32 in [0, 1], ranking score: cls_score * quality ** alpha; 0 = empty
    labels      (N, K) int64, index in the manifest's classes
    cls_scores  (N, K) float32 in [0, 1], probability of the class
    qualities   (N, K) float32 in [0, 1], predicted quality of the box; 1.0 without a quality branch
    """

    boxes: Floats
    scores: Floats
    labels: Labels
    cls_scores: Floats
    qualities: Floats
