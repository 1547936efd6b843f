"""ETags, and the cache of answers: the same question gets the same answer, no other does."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import cells, encoded

from clq_serve.bundle import load_bundle
from clq_serve.cache import AnswerCache, etag_of, names_etag
from clq_serve.candidates import Candidates
from clq_serve.detector import DetectOptions, Detector
from clq_serve.engine import OnnxEngine
from clq_serve.formats import BoxFormat, Encoded, Format, Rendering
from clq_serve.loading import LoadedModel
from clq_serve.nms import ClassNms

PATIENCE_S = 60
MEBIBYTE = 2**20


def post(server: str, query: str = "", data: bytes | None = None, **headers: str) -> httpx.Response:
    sent = {"Content-Type": "image/png"} | {k.replace("_", "-"): v for k, v in headers.items()}
    url = f"{server}/v1/detect?{query}"
    return httpx.post(url, content=data or cells(), headers=sent, timeout=PATIENCE_S)


def without_id(answer: httpx.Response) -> dict:
    body = answer.json()
    assert body.pop("id") == answer.headers["x-request-id"]
    return body


def test_the_second_answer_is_the_first_one_under_a_new_id(
    start_server: Callable[..., str],
) -> None:
    server = start_server(response_cache_bytes=MEBIBYTE)
    first, second = post(server), post(server)
    assert first.headers["cache-status"] == "clq-serve; fwd=miss; stored"
    assert second.headers["cache-status"] == "clq-serve; hit"
    assert second.headers["server-timing"] == "cache;desc=hit"
    assert without_id(first) == without_id(second)
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    for header in ("etag", "content-type", "x-model-digest", "cache-control"):
        assert first.headers[header] == second.headers[header]


def test_another_question_is_another_answer(start_server: Callable[..., str]) -> None:
    server = start_server(response_cache_bytes=MEBIBYTE)
    seen = {post(server).headers["etag"]}
    queries = ["score=0.2", "iou=0.5", "max=2", "classes=red", "box_format=xywh", "format=yolo"]
    queries += ["format=image", "format=coco&image_id=1", "format=coco&image_id=2"]
    for query, accept in [(query, "*/*") for query in queries] + [("format=image", "image/png")]:
        other = post(server, query, Accept=accept)
        assert other.headers["cache-status"] == "clq-serve; fwd=miss; stored"
        assert other.headers["etag"] not in seen
        seen.add(other.headers["etag"])
        again = post(server, query, Accept=accept)
        assert again.headers["cache-status"] == "clq-serve; hit"
        assert again.headers["content-type"] == other.headers["content-type"]
        if "format" in query and "box" not in query:
            assert again.content == other.content  # there is no id in it


def test_the_same_options_said_otherwise_are_the_same_question(
    start_server: Callable[..., str],
) -> None:
    server = start_server(response_cache_bytes=MEBIBYTE)
    post(server, "classes=red,blue&score=0.30")
    for query in ("classes=blue,red", "classes=2,0&format=json", "score=3e-1&classes=red, blue"):
        assert post(server, query).headers["cache-status"] == "clq-serve; hit"


def test_another_image_is_another_answer(start_server: Callable[..., str]) -> None:
    server = start_server(response_cache_bytes=MEBIBYTE)
    assert len(post(server).json()["detections"]) == 3
    black = post(server, data=encoded(np.zeros((64, 96, 3), np.uint8)))
    assert black.json()["detections"] == []


def test_without_the_setting_nothing_is_kept(server: str) -> None:
    for _ in range(2):
        answer = post(server)
        assert "cache-status" not in answer.headers
        assert "infer" in answer.headers["server-timing"]
    assert answer.headers["etag"].startswith('W/"')


@pytest.mark.parametrize("kept", [0, MEBIBYTE])
def test_an_answer_that_the_client_has_is_a_304_without_a_body(
    start_server: Callable[..., str], kept: int
) -> None:
    server = start_server(response_cache_bytes=kept)
    etag = post(server).headers["etag"]
    for header in (etag, f'"other", {etag}'):
        answer = post(server, If_None_Match=header)
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
        assert answer.headers["x-model-digest"]
    for header in ('"other"', "*", ""):
        assert post(server, If_None_Match=header).status_code == 200
    assert post(server, "score=0.2", If_None_Match=etag).status_code == 200


def test_refused_images_are_not_kept(start_server: Callable[..., str]) -> None:
    server = start_server(response_cache_bytes=MEBIBYTE)
    for _ in range(2):
        answer = post(server, data=b"no image")
        assert answer.status_code == 415
        assert "cache-status" not in answer.headers


class GatedEngine:
    """The real engine behind a gate that the test opens."""

    def __init__(self, engine: OnnxEngine) -> None:
        self.open = threading.Event()
        self.calls = 0
        self._engine = engine

    def run(self, batch: np.ndarray) -> Candidates:
        self.calls += 1
        assert self.open.wait(PATIENCE_S)
        return self._engine.run(batch)


def test_equal_questions_at_the_same_time_are_asked_once(
    start_server: Callable[..., str], tiny_bundle: Path
) -> None:
    bundle = load_bundle(tiny_bundle)
    engine = GatedEngine(OnnxEngine(bundle, threads=1))
    detector = Detector(engine, ClassNms(), bundle.manifest.input.rule)
    model = LoadedModel(bundle, (detector,), None, "test", 0)
    server = start_server(model, response_cache_bytes=MEBIBYTE)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(post, server) for _ in range(5)]
        late = pool.submit(post, server, X_Request_Timeout_Ms="300")
        try:
            assert late.result(PATIENCE_S).json()["stage"] in ("queue", "infer")
        finally:
            engine.open.set()
        answers = [one.result(PATIENCE_S) for one in asked]
    hits = sorted("hit" in answer.headers["cache-status"] for answer in answers)
    assert [answer.status_code for answer in answers] == [200] * 5
    assert hits == [False, True, True, True, True]
    assert engine.calls <= 2  # one more where the late one was the first


def test_a_batch_uses_the_cache_too(start_server: Callable[..., str]) -> None:
    server = start_server(response_cache_bytes=MEBIBYTE)
    single = without_id(post(server))
    answer = httpx.post(
        f"{server}/v1/detect/batch", files=[("image", cells())] * 2, timeout=PATIENCE_S
    )
    for item in answer.json():
        assert item.pop("ok") is True
        assert item.pop("id").startswith(answer.headers["x-request-id"])
        assert item == single  # to the time it took: it was not run again


def answer_of(size: int) -> Encoded:
    return Encoded("application/json", bytes(size), True, 0)


@settings(max_examples=100, deadline=None)
@given(
    most=st.integers(0, 20_000),
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6000)), max_size=60),
)
def test_the_cache_is_bounded_and_drops_the_least_recently_used(
    most: int, steps: list[tuple[int, int]]
) -> None:
    cache = AnswerCache(most)
    model: list[tuple[str, Encoded]] = []  # least recently used first
    for name, size in steps:
        etag = str(name)
        held = [entry for entry in model if entry[0] == etag]
        assert cache.get(etag) is (held[0][1] if held else None)
        if held:
            model.remove(held[0])
            model.append(held[0])
            continue
        answer = answer_of(size)
        fits = size + 500 <= most
        assert cache.put(etag, answer) is fits
        if fits:
            model.append((etag, answer))
            while sum(len(a.data) + 500 for _, a in model) > most:
                model.pop(0)
        assert cache.bytes_held == sum(len(a.data) + 500 for _, a in model) <= most


def test_an_etag_depends_on_everything_that_the_answer_depends_on() -> None:
    options = DetectOptions(0.3, 0.6, 100, None)
    json = Rendering(Format.JSON, "application/json")
    base = ("a" * 64, "sha256:b", options, json, BoxFormat.XYXY, None)
    others = [
        ("c" * 64, *base[1:]),
        (base[0], "sha256:c", *base[2:]),
        (*base[:2], DetectOptions(0.3, 0.6, 100, frozenset({0})), *base[3:]),
        (*base[:2], DetectOptions(0.6, 0.3, 100, None), *base[3:]),
        (*base[:3], Rendering(Format.IMAGE, "image/png"), *base[4:]),
        (*base[:4], BoxFormat.NORM, None),
        (*base[:5], 1),
        (*base[:5], "1"),
    ]
    tags = [etag_of(*parts) for parts in [base, *others]]  # type: ignore[arg-type]
    assert len(set(tags)) == len(tags)
    assert etag_of(*base) == tags[0]
    assert names_etag(f'"x",{tags[0]}', tags[0])
    assert not names_etag(None, tags[0])
