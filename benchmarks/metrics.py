"""What counting costs a request:  python benchmarks/metrics.py"""

import timeit
from collections.abc import Callable

import numpy as np

from clq_serve.detector import Detections
from clq_serve.metrics import STAGES, Metrics

CALLS = 20_000


def main() -> None:
    """Prints the microseconds of each call and of all that one image causes."""
    metrics = Metrics()
    found = {count: _detections(count) for count in (5, 100)}
    rows: dict[str, Callable[[], None]] = {
        "stage": lambda: metrics.stage("infer", 0.1),
        "batch": lambda: metrics.batch(4, 0.1),
        "queue_depth": lambda: metrics.queue_depth(1, 2, 3),
        "request_began + request_ended": lambda: _request(metrics),
        "detections, 5 boxes": lambda: metrics.detections("ui", 1, found[5]),
        "detections, 100 boxes": lambda: metrics.detections("ui", 1, found[100]),
        "one image of 100 boxes, all of it": lambda: _image(metrics, found[100]),
    }
    print(f"{'call':<36}{'us':>8}")
    for name, call in rows.items():
        best_s = min(timeit.repeat(call, number=CALLS // 5, repeat=5))
        print(f"{name:<36}{1e6 * best_s / (CALLS // 5):>8.2f}")


def _request(metrics: Metrics) -> None:
    metrics.request_began()
    metrics.request_ended("/v1/detect", 200, 0.1)


def _image(metrics: Metrics, found: Detections) -> None:
    _request(metrics)
    for stage in STAGES:
        metrics.stage(stage, 0.1)
    metrics.queue_depth(1, 2, 3)
    metrics.batch(4, 0.1)
    metrics.queue_depth(0, 0, 0)
    metrics.detections("ui", 1, found)


def _detections(count: int) -> Detections:
    rng = np.random.default_rng(0)
    scores = np.sort(rng.random(count).astype(np.float32))[::-1]
    labels = rng.integers(0, 20, count)
    return Detections(np.zeros((count, 4), np.float32), scores, labels, scores, scores)


if __name__ == "__main__":
    main()
