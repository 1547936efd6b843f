"""POST /v1/detect/batch: several images in one request, each with a status of its own."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from pictures import cells, encoded
from pydantic import TypeAdapter

from clq_serve.bundle import load_bundle
from clq_serve.candidates import Candidates
from clq_serve.detector import Detector
from clq_serve.engine import OnnxEngine
from clq_serve.loading import LoadedModel
from clq_serve.nms import ClassNms
from clq_serve.responses import FailedItem, ItemAnswer

PATIENCE_S = 60
ITEMS = TypeAdapter(list[ItemAnswer | FailedItem])


def post(server: str, path: str = "/v1/detect/batch", **more: object) -> httpx.Response:
    return httpx.post(f"{server}{path}", timeout=PATIENCE_S, **more)  # type: ignore[arg-type]


def of_field(name: str, *files: bytes) -> list:
    return [(name, (f"{index}.png", data)) for index, data in enumerate(files)]


def items(answer: httpx.Response) -> list[ItemAnswer | FailedItem]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return ITEMS.validate_json(answer.content)


@pytest.mark.parametrize("field", ["image", "file", "images", "files"])
def test_repeated_fields_are_answered_in_their_order(server: str, field: str) -> None:
    kinds = ("PNG", "BMP", "WEBP", "JPEG")
    answer = post(server, files=of_field(field, *(cells(kind) for kind in kinds)))
    found = items(answer)
    assert all(isinstance(item, ItemAnswer) for item in found)
    assert [item.image.format for item in found] == list(kinds)
    assert [item.id for item in found] == [
        f"{answer.headers['x-request-id']}-{i}" for i in range(4)
    ]
    assert answer.headers["x-model-digest"] == found[0].model.digest


def test_json_lists_and_single_images_are_answered_too(server: str) -> None:
    coded = {"b64": base64.b64encode(cells()).decode()}
    assert len(items(post(server, json={"images": [coded] * 3}))) == 3
    (one,) = items(post(server, json={"image": coded, "max": 1, "box_format": "xywh"}))
    assert [d.label for d in one.detections] == ["red"]
    assert one.detections[0].box == (0, 0, 32, 32)
    (raw,) = items(post(server, content=cells(), headers={"Content-Type": "image/png"}))
    assert len(raw.detections) == 3


def test_an_item_is_what_the_single_route_answers(server: str) -> None:
    single = post(server, "/v1/detect", files={"image": cells()}).json()
    (item,) = json.loads(post(server, files={"image": cells()}).content)
    assert list(item) == ["ok", *single]
    for member in ("model", "image", "box_format", "detections"):
        assert item[member] == single[member]


def test_each_bad_image_has_its_own_problem_and_the_others_their_answers(server: str) -> None:
    bad = [b"text", cells("BMP")[:200], b"", cells("GIF")]
    files = of_field("images", cells(), bad[0], bad[1], cells(), bad[2], bad[3], cells())
    answer = post(server, files=files)
    found = items(answer)
    assert [item.ok for item in found] == [True, False, False, True, False, False, True]
    problems = [item.problem for item in found if not item.ok]
    assert [(p.status, p.code) for p in problems] == [
        (415, "unsupported_image"),
        (422, "truncated"),
        (400, "empty_body"),
        (415, "unsupported_image"),
    ]
    for problem in problems:
        assert problem.type == f"/docs#{problem.code}"
        assert problem.instance == "/v1/detect/batch"
        assert problem.request_id == answer.headers["x-request-id"]


class FaultyEngine:
    """The real engine, with a bug for images whose first pixel is blue."""

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine

    def run(self, batch: np.ndarray) -> Candidates:
        if (batch[:, 0, 0, 2] > 200).any():
            raise RuntimeError("secret detail of /a/path")
        return self._engine.run(batch)


@pytest.fixture
def faulty(tiny_bundle: Path) -> LoadedModel:
    bundle = load_bundle(tiny_bundle)
    engine = FaultyEngine(OnnxEngine(bundle, threads=1))
    detector = Detector(engine, ClassNms(), bundle.manifest.input.rule)
    return LoadedModel(bundle, (detector,), None, "test", 0)


def test_a_bug_with_one_image_is_its_problem_alone(
    start_server: Callable[..., str], faulty: LoadedModel
) -> None:
    server = start_server(faulty)
    blue = encoded(np.full((64, 96, 3), (0, 0, 255), np.uint8))
    answer = post(server, files=of_field("image", cells(), blue, cells()))
    found = items(answer)
    assert [item.ok for item in found] == [True, False, True]
    assert (found[1].problem.status, found[1].problem.code) == (500, "internal")
    assert "secret" not in answer.text


def test_too_many_images_and_wrong_envelopes_are_refused_as_a_whole(
    start_server: Callable[..., str],
) -> None:
    server = start_server(max_images_per_request=3)

    def refused(status: int, code: str, query: str = "", **more: object) -> dict:
        answer = post(server, f"/v1/detect/batch?{query}", **more)
        assert (answer.status_code, answer.json().get("code")) == (status, code)
        return answer.json()

    assert len(items(post(server, files=of_field("image", *[cells()] * 3)))) == 3
    body = refused(400, "too_many_images", files=of_field("image", *[cells()] * 4))
    assert (body["limit"], body["observed"]) == (3, 4)
    refused(400, "missing_image", json={"images": []})
    refused(400, "bad_json", content=b"{", headers={"Content-Type": "application/json"})
    refused(415, "wrong_content_type", content=cells())
    refused(422, "bad_parameter", "score=7", files={"image": cells()})
    body = refused(422, "bad_parameter", "format=image", files={"image": cells()})
    assert "format" not in body["accepted"]
    refused(406, "not_acceptable", files={"image": cells()}, headers={"Accept": "image/png"})
    refused(422, "bad_parameter", files={"image": cells()}, data={"classes": "cat"})


def test_thirty_two_images_get_their_own_answers(server: str) -> None:
    def marked(index: int) -> bytes:
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[:32, :32, index % 3] = 120 + 4 * index
        return encoded(pixels)

    found = items(post(server, files=of_field("images", *(marked(i) for i in range(32)))))
    for index, item in enumerate(found):
        (one,) = item.detections
        assert one.class_id == index % 3
        assert one.cls_score == pytest.approx((120 + 4 * index) / 255, abs=1e-4)
