"""Detections in COCO's result format, in memory and as a file."""

import numpy as np

from clq_serve.detector import Detections
from clq_train.measure import Result


def coco_results(image_id: int, found: Detections) -> list[Result]:
    """Detections in COCO's result format; category_id is the label."""
    boxes = found.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {"image_id": image_id, "category_id": int(label), "bbox": box.tolist(), "score": float(s)}
        for box, label, s in zip(boxes, found.labels, found.scores, strict=True)
    ]
