"""What every peer serves: the built-in model with CLQ's own decoding, preparation and suppression.

The peers import this file, so that only their serving differs.  They run it in environments of
their own with ONNX Runtime, NumPy, Pillow and pydantic, and this checkout's serve/ on PYTHONPATH.
"""

import os
from collections.abc import Sequence

import numpy as np
import onnxruntime

from clq_serve.bundle import builtin_bundle_path, load_bundle
from clq_serve.candidates import Candidates
from clq_serve.detector import Detections, DetectOptions, Detector
from clq_serve.nms import ClassNms
from clq_serve.preprocess import ImageLimits, decode_image

PORT = int(os.environ.get("PEER_PORT", "0"))
WORKERS = int(os.environ.get("PEER_WORKERS", "1"))  # how many processes run the model
THREADS = int(os.environ.get("PEER_THREADS", "0"))  # of each session; 0 = ONNX Runtime's default
BATCH = int(os.environ.get("PEER_BATCH", "1"))  # images in a batch at most
BATCH_WAIT_S = 0.005  # how long a batch waits for more images


class Model:
    """The whole way from image files to detections, in the calling thread."""

    def __init__(self) -> None:
        bundle = load_bundle(builtin_bundle_path())
        manifest = bundle.manifest
        self._names = manifest.class_names
        self._background = manifest.input.background
        self._options = DetectOptions.from_thresholds(manifest.thresholds)
        session = _Session(str(bundle.model_path), manifest.input.name, manifest.outputs.names)
        self._detector = Detector(session, ClassNms(), manifest.input.rule)

    def detect(self, files: Sequence[bytes]) -> list[list[dict[str, object]]]:
        """The detections in each image file, as plain values for JSON."""
        images = [decode_image(data, ImageLimits(), self._background) for data in files]
        found, _ = self._detector.detect(images, self._options)
        return [self._plain(one) for one in found]

    def _plain(self, found: Detections) -> list[dict[str, object]]:
        return [
            {
                "box": [round(side, 3) for side in box],
                "score": round(score, 6),
                "class_id": label,
                "label": self._names[label],
                "quality": round(quality, 6),
                "cls_score": round(cls_score, 6),
            }
            for box, score, label, quality, cls_score in zip(
                found.boxes.tolist(),
                found.scores.tolist(),
                found.labels.tolist(),
                found.qualities.tolist(),
                found.cls_scores.tolist(),
                strict=True,
            )
        ]


class _Session:
    """An ONNX Runtime session with all its defaults, or with a number of threads."""

    def __init__(self, path: str, input_name: str, output_names: Sequence[str]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._input_name = input_name
        self._output_names = output_names

    def run(self, batch: np.ndarray) -> Candidates:
        return Candidates(*self._session.run(self._output_names, {self._input_name: batch}))
