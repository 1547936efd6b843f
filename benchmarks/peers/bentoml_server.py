"""BentoML: a service with a batchable API, or several workers."""

from pathlib import Path

import bentoml
from same import BATCH, WORKERS, Model

BATCHING = {"batchable": True, "max_batch_size": BATCH, "max_latency_ms": 120_000}
if BATCH == 1:
    BATCHING = {}


@bentoml.service(workers=WORKERS, traffic={"timeout": 120})
class Detect:
    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api(route="/detect", **BATCHING)
    def detect(self, images: list[Path]) -> list[dict]:
        found = self.model.detect([image.read_bytes() for image in images])
        return [{"detections": one} for one in found]
