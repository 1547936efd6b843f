"""Non-maximum suppression, per class, in ONNX Runtime's compiled kernel.

nms.onnx is a graph of one NonMaxSuppression node (opset 11) with run-time thresholds; a test
rebuilds it, and another holds its indices equal to those of a plain loop.
"""

import importlib.resources

import numpy as np
import numpy.typing as npt
import onnxruntime

from clq_serve.candidates import Floats, Labels


class ClassNms:
    """Greedy suppression among boxes of the same label; thread-safe, built once."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        graph = importlib.resources.files("clq_serve").joinpath("nms.onnx").read_bytes()
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )

    def __call__(
        self,
        boxes: Floats,
        scores: Floats,
        labels: Labels,
        iou: float,
        score_threshold: float,
        max: int,
    ) -> npt.NDArray[np.int64]:
        """Indices of the kept boxes, by descending score; of equal scores the lower index first.

        boxes            (K, 4) x1 y1 x2 y2
        scores           (K,) in [0, 1]; only scores > score_threshold are kept
        labels           (K,) boxes of different labels never suppress each other
        iou              in [0, 1]; a box whose IoU with a kept one is > iou is suppressed
        max              how many boxes are kept at most, all labels together
        """
        strong = np.flatnonzero(scores > np.float32(score_threshold))
        if strong.size == 0:
            return strong
        present, row = np.unique(labels[strong], return_inverse=True)  # (C,), (M,)
        per_class = np.full((1, present.size, strong.size), -1.0, np.float32)
        per_class[0, row, np.arange(strong.size)] = scores[strong]
        feeds = {
            "boxes": np.ascontiguousarray(boxes[None, strong], np.float32),  # (1, M, 4)
            "scores": per_class,  # (1, C, M)
            "max_per_class": np.array([max], np.int64),
            "iou": np.array([iou], np.float32),
            "score_threshold": np.array([score_threshold], np.float32),
        }
        (selected,) = self._session.run(["selected"], feeds)  # (S, 3) image, class row, box
        kept: npt.NDArray[np.int64] = strong[selected[:, 2]]
        order = np.lexsort((kept, -scores[kept]))
        return kept[order[:max]]
