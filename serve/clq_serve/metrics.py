"""What the service counts, in the text format of Prometheus.  Nothing here is global.

One request costs a few microseconds (`python benchmarks/metrics.py` prints how many): children are
looked up once, and the scores of an image are counted by one numpy call, not one by one.
"""

import threading
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from clq_serve import __version__
from clq_serve.detector import Detections

STAGES = ("upload", "decode", "queue", "infer", "post", "encode", "total")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_BATCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_TENTHS = tuple(round(0.1 * tenth, 1) for tenth in range(1, 11))
_BOXES = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """The measurements of one service."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        stage_seconds = Histogram(
            "clq_stage_seconds",
            "Time in one stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = {stage: stage_seconds.labels(stage) for stage in STAGES}
        self._batch = Histogram(
            "clq_batch_images", "Images in one call of a model.", buckets=_BATCH, registry=registry
        )
        self._waste = Histogram(
            "clq_padding_waste_ratio",
            "Padded pixels that are not image, of all pixels of a batch.",
            buckets=_TENTHS,
            registry=registry,
        )
        queue = Gauge("clq_queue", "What waits for a model now.", ["of"], registry=registry)
        self._queued = tuple(queue.labels(of) for of in ("images", "pixels", "bytes"))
        self._refused = Counter(
            "clq_refused", "Requests or images that got a problem, by code.", ["code"],
            registry=registry,
        )  # fmt: skip
        self._requests = Counter(
            "clq_requests", "Answered requests; 499: the client left before the answer.",
            ["route", "status"], registry=registry,
        )  # fmt: skip
        self._request_seconds = Histogram(
            "clq_request_seconds", "From the headers of a request to the end of its answer.",
            ["route"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._inside = Gauge("clq_requests_in_progress", "Requests inside now.", registry=registry)
        self._connections = Gauge("clq_connections", "Open connections.", registry=registry)
        self._cut_off = Counter(
            "clq_connections_cut_off", "Connections that the service ended, by reason.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self._cache = Counter(
            "clq_answer_cache", "Images looked up in the answer cache, by result.", ["result"],
            registry=registry,
        )  # fmt: skip
        self._models = Gauge(
            "clq_model_info", "1 for each loaded model.", ["name", "version", "digest"],
            registry=registry,
        )  # fmt: skip
        self._loads = Counter(
            "clq_model_loads", "Loads while the service ran, by result.", ["name", "result"],
            registry=registry,
        )  # fmt: skip
        Gauge("clq_build_info", "1.", ["version"], registry=registry).labels(__version__).set(1)
        self._detections = _DetectionStatistics()
        registry.register(self._detections)
        ProcessCollector(registry=registry)

    def stage(self, name: str, seconds: float) -> None:
        """One image or request spent this long in the stage, one of STAGES."""
        self._stages[name].observe(seconds)

    def batch(self, size: int, padding_waste: float) -> None:
        """One call of a model; padding_waste in [0, 1] is padded pixels that are not image."""
        self._batch.observe(size)
        self._waste.observe(padding_waste)

    def queue_depth(self, images: int, pixels: int, bytes: int) -> None:
        """What waits for a model now."""
        for gauge, value in zip(self._queued, (images, pixels, bytes), strict=True):
            gauge.set(value)

    def refused(self, code: str) -> None:
        """One request, or one image of a request, got the problem `code`."""
        self._refused.labels(code).inc()

    def detections(self, model_name: str, version: int, found: Detections) -> None:
        """The detections of one image."""
        self._detections.add((model_name, str(version)), found)

    def answer_cache(self, hit: bool) -> None:
        """One image was looked up in the cache of answers."""
        self._cache.labels("hit" if hit else "miss").inc()

    def model_load_ended(self, name: str, refused: bool) -> None:
        """A load, while the service runs, swapped the model in or was refused."""
        self._loads.labels(name, "refused" if refused else "loaded").inc()

    def model_loaded(self, name: str, version: int, digest: str) -> None:
        """The model answers requests from now on."""
        self.model_unloaded(name, version)  # a version that is loaded again may have another digest
        self._models.labels(name, str(version), digest).set(1)

    def model_unloaded(self, name: str, version: int) -> None:
        """The model answers no more requests; nothing happens if it did not before."""
        self._models.remove_by_labels({"name": name, "version": str(version)})

    def request_began(self) -> None:
        """A request came in, on any route."""
        self._inside.inc()

    def request_ended(self, route: str, status: int, seconds: float) -> None:
        """A request was answered; `route` is its template, e.g. /v1/models/{name}."""
        self._inside.dec()
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def connection_opened(self) -> None:
        """A client connected."""
        self._connections.inc()

    def connection_closed(self) -> None:
        """A connection ended, whoever ended it."""
        self._connections.dec()

    def connection_cut_off(self, reason: str) -> None:
        """The service ended a connection, e.g. because a client sent too slowly."""
        self._cut_off.labels(reason).inc()

    def text(self) -> bytes:
        """All of it, as CONTENT_TYPE."""
        return generate_latest(self.registry)


class _PerModel:
    """Counts for one model since it was loaded."""

    def __init__(self) -> None:
        self.scores = np.zeros(len(_TENTHS) + 1, np.int64)  # the last: above every bound
        self.qualities = np.zeros(len(_TENTHS) + 1, np.int64)
        self.boxes = np.zeros(len(_BOXES) + 1, np.int64)
        self.classes = np.zeros(1, np.int64)
        self.sum_scores = self.sum_qualities = 0.0


class _DetectionStatistics(Collector):
    """Scores, qualities, classes and boxes an image: what drifts when the images change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # engine threads add, the admin listener reads
        self._models: dict[tuple[str, str], _PerModel] = {}

    def add(self, model: tuple[str, str], found: Detections) -> None:
        """The detections of one image of the model (name, version)."""
        boxes = np.searchsorted(_BOXES, len(found.scores))
        scores = _tenths(found.scores)
        qualities = _tenths(found.qualities)
        classes = np.bincount(found.labels)
        with self._lock:
            seen = self._models.setdefault(model, _PerModel())
            seen.boxes[boxes] += 1
            seen.scores += scores
            seen.qualities += qualities
            seen.sum_scores += float(found.scores.sum())
            seen.sum_qualities += float(found.qualities.sum())
            if len(classes) > len(seen.classes):
                seen.classes = np.pad(seen.classes, (0, len(classes) - len(seen.classes)))
            seen.classes[: len(classes)] += classes

    def collect(self) -> Iterator[Metric]:
        """The metric families, as the registry asks for them."""
        labels = ["model", "version"]
        score = HistogramMetricFamily("clq_detection_score", "Ranking scores.", labels=labels)
        quality = HistogramMetricFamily("clq_detection_quality", "Box qualities.", labels=labels)
        boxes = HistogramMetricFamily("clq_image_detections", "Boxes an image.", labels=labels)
        classes = CounterMetricFamily(
            "clq_detections", "Detections by class.", labels=[*labels, "class_id"]
        )
        with self._lock:
            for model, seen in self._models.items():
                score.add_metric(model, _buckets(_TENTHS, seen.scores), seen.sum_scores)
                quality.add_metric(model, _buckets(_TENTHS, seen.qualities), seen.sum_qualities)
                boxes.add_metric(model, _buckets(_BOXES, seen.boxes), int(seen.classes.sum()))
                for class_id in np.flatnonzero(seen.classes):
                    classes.add_metric([*model, str(class_id)], int(seen.classes[class_id]))
        yield from (score, quality, boxes, classes)


def _tenths(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """(11,) how many values lie in (0.0, 0.1], (0.1, 0.2] ... (0.9, 1.0], and above."""
    return np.bincount(np.searchsorted(_TENTHS_32, values), minlength=len(_TENTHS) + 1)


_TENTHS_32 = np.array(_TENTHS, np.float32)  # so that a float32 score of 0.3 is "<= 0.3"


def _buckets(bounds: Iterable[float], counts: NDArray[np.int64]) -> list[tuple[str, float]]:
    """Prometheus' cumulative (le, count) pairs."""
    names = [str(float(bound)) for bound in bounds] + ["+Inf"]
    return list(zip(names, np.cumsum(counts).tolist(), strict=True))
