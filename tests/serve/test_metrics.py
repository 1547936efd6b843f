"""What is counted, as Prometheus reads it."""

import asyncio
import threading

import numpy as np
import pytest
from httpx import ASGITransport, AsyncClient
from prometheus_client.parser import text_string_to_metric_families

from clq_serve.admin_app import create_admin_app
from clq_serve.app import create_app
from clq_serve.detector import Detections
from clq_serve.loading import LoadedModel
from clq_serve.metrics import STAGES, Metrics
from clq_serve.models import ModelStore
from clq_serve.settings import Settings

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(metrics: Metrics) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, frozenset(labels.items())]


def detections(scores: list[float], qualities: list[float], labels: list[int]) -> Detections:
    return Detections(
        boxes=np.zeros((len(scores), 4), np.float32),
        scores=np.array(scores, np.float32),
        labels=np.array(labels, np.int64),
        cls_scores=np.array(scores, np.float32),
        qualities=np.array(qualities, np.float32),
    )


def test_two_services_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.refused("overloaded")
    assert value(first, "clq_refused_total", code="overloaded") == 1
    assert "overloaded" not in second.text().decode()


def test_stages_batches_and_the_queue() -> None:
    metrics = Metrics()
    for stage in STAGES:
        metrics.stage(stage, 0.004)
    metrics.batch(3, 0.25)
    metrics.queue_depth(images=2, pixels=1000, bytes=3000)
    assert value(metrics, "clq_stage_seconds_sum", stage="infer") == 0.004
    assert value(metrics, "clq_stage_seconds_bucket", stage="infer", le="0.002") == 0
    assert value(metrics, "clq_stage_seconds_bucket", stage="infer", le="0.005") == 1
    assert value(metrics, "clq_batch_images_sum") == 3
    assert value(metrics, "clq_padding_waste_ratio_sum") == 0.25
    assert value(metrics, "clq_queue", of="bytes") == 3000


def test_a_model_is_shown_with_one_digest_until_it_is_unloaded() -> None:
    metrics = Metrics()
    metrics.model_loaded("ui", 1, "sha256:a")
    metrics.model_loaded("ui", 2, "sha256:b")
    metrics.model_loaded("ui", 1, "sha256:c")
    metrics.model_unloaded("ui", 2)
    metrics.model_unloaded("other", 9)
    shown = [dict(labels) for name, labels in samples(metrics) if name == "clq_model_info"]
    assert shown == [{"name": "ui", "version": "1", "digest": "sha256:c"}]


def test_detection_statistics_agree_with_counting_one_by_one() -> None:
    rng = np.random.default_rng(0)
    metrics = Metrics()
    scores: list[float] = []
    for count in (0, 1, 3, 40, 100):
        drawn = np.sort(np.append(rng.random(count), [0.3, 1.0]).astype(np.float32))[::-1]
        scores += drawn.tolist()
        metrics.detections("ui", 1, detections(drawn.tolist(), drawn.tolist(), [7] * len(drawn)))
    for tenth in range(1, 11):
        bound = round(0.1 * tenth, 1)
        expected = sum(score <= np.float32(bound) for score in scores)
        for name in ("clq_detection_score_bucket", "clq_detection_quality_bucket"):
            assert value(metrics, name, model="ui", version="1", le=str(bound)) == expected
    assert value(metrics, "clq_detection_score_sum", model="ui", version="1") == pytest.approx(
        sum(scores), rel=1e-5
    )
    total = len(scores)
    assert value(metrics, "clq_detections_total", model="ui", version="1", class_id="7") == total
    assert value(metrics, "clq_image_detections_count", model="ui", version="1") == 5
    assert value(metrics, "clq_image_detections_bucket", model="ui", version="1", le="2.0") == 1
    assert value(metrics, "clq_image_detections_sum", model="ui", version="1") == total


def test_an_image_without_detections_counts_as_an_image() -> None:
    metrics = Metrics()
    metrics.detections("ui", 1, detections([], [], []))
    assert value(metrics, "clq_image_detections_bucket", model="ui", version="1", le="0.0") == 1
    assert value(metrics, "clq_detection_score_count", model="ui", version="1") == 0


def test_threads_lose_no_count() -> None:
    metrics = Metrics()
    found = detections([0.9, 0.2], [0.5, 0.5], [0, 3])
    work = [
        threading.Thread(target=lambda: [metrics.detections("ui", 1, found) for _ in range(500)])
        for _ in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert value(metrics, "clq_image_detections_count", model="ui", version="1") == 2000
    assert value(metrics, "clq_detections_total", model="ui", version="1", class_id="3") == 2000


def test_requests_are_counted_by_template_and_never_by_a_strangers_words(
    tiny_model_loaded: LoadedModel,
) -> None:
    app = create_app(Settings(threads=1), ModelStore([tiny_model_loaded]))

    async def visit() -> str:
        async with app.router.lifespan_context(app):
            async with AsyncClient(transport=ASGITransport(app), base_url="http://x") as client:
                assert (await client.get("/v1/labels")).status_code == 200
                assert (await client.get("/v1/secret-words")).status_code == 404
            admin = ASGITransport(create_admin_app(app.state.service))
            async with AsyncClient(transport=admin, base_url="http://x") as client:
                return (await client.get("/metrics")).text

    text = asyncio.run(visit())
    assert 'clq_requests_total{route="/v1/labels",status="200"} 1.0' in text
    assert 'clq_requests_total{route="none",status="404"} 1.0' in text
    assert 'clq_refused_total{code="not_found"} 1.0' in text
    assert 'clq_model_info{digest="sha256:' in text
    assert "secret" not in text
