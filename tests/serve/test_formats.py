"""The formats of an answer, and which one a request gets."""

import io
import json

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import cells
from PIL import Image
from pydantic import TypeAdapter

from clq_serve.detector import Detections
from clq_serve.errors import BadParameter, NotAcceptable
from clq_serve.formats import (
    IMAGE_TYPES,
    BoxFormat,
    Format,
    encode_coco,
    encode_json,
    encode_yolo,
    image_id_of,
    negotiate,
)
from clq_serve.loading import LoadedModel
from clq_serve.responses import CocoResult, DetectAnswer, Timing
from clq_serve.service import Outcome

PATIENCE_S = 60
WIDTH, HEIGHT = 640, 480


def post(server: str, query: str = "", accept: str | None = None, **more: object) -> httpx.Response:
    headers = {"Accept": accept} if accept is not None else {}
    more = more or {"files": {"image": ("000000139.jpg", cells())}}
    url = f"{server}/v1/detect?{query}"
    return httpx.post(url, headers=headers, timeout=PATIENCE_S, **more)  # type: ignore[arg-type]


def outcome(seed: int, count: int) -> Outcome:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)
    found = Detections(
        boxes=(corners * (WIDTH, HEIGHT, WIDTH, HEIGHT)).astype(np.float32),
        scores=rng.uniform(0, 1, count).astype(np.float32),
        labels=rng.integers(0, 3, count),
        cls_scores=rng.uniform(0, 1, count).astype(np.float32),
        qualities=rng.uniform(0, 1, count).astype(np.float32),
    )
    times = Timing(decode=1.5, queue=0, infer=20, post=0.1, total=22, batch_size=1)
    return Outcome(WIDTH, HEIGHT, "PNG", False, "ab" * 32, found, times)


def boxes_by_loops(one: Outcome, boxes: BoxFormat) -> list[list[float]]:
    rows = []
    for x1, y1, x2, y2 in one.detections.boxes.tolist():
        rows.append(
            {
                BoxFormat.XYXY: [x1, y1, x2, y2],
                BoxFormat.XYWH: [x1, y1, x2 - x1, y2 - y1],
                BoxFormat.CXCYWH: [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1],
                BoxFormat.NORM: [x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT],
            }[boxes]
        )
    return rows


@pytest.mark.parametrize("boxes", BoxFormat)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 30))
def test_json_is_the_documented_answer(
    tiny_model_loaded: LoadedModel, boxes: BoxFormat, seed: int, count: int
) -> None:
    one = outcome(seed, count)
    body = encode_json(tiny_model_loaded, one, boxes).body("request-1")
    answer = DetectAnswer.model_validate_json(body, strict=True)  # no member more, none less
    assert json.loads(body) == json.loads(answer.model_dump_json())
    assert list(json.loads(body)) == list(DetectAnswer.model_fields)
    assert (answer.id, answer.box_format, answer.timing_ms) == ("request-1", boxes, one.timing)
    tolerance = 1e-6 if boxes is BoxFormat.NORM else 1e-3
    found = np.array([d.box for d in answer.detections]).reshape(-1, 4)
    expected = np.array(boxes_by_loops(one, boxes)).reshape(-1, 4)
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)
    assert [d.class_id for d in answer.detections] == one.detections.labels.tolist()
    assert [d.label for d in answer.detections] == [
        tiny_model_loaded.bundle.manifest.class_names[label] for label in one.detections.labels
    ]
    for member, values in (
        ("score", one.detections.scores),
        ("quality", one.detections.qualities),
        ("cls_score", one.detections.cls_scores),
    ):
        sent = [getattr(d, member) for d in answer.detections]
        assert sent == pytest.approx(values.tolist(), abs=1e-6)


def test_coco_has_the_ids_of_the_data_set(tiny_model_loaded: LoadedModel) -> None:
    one = outcome(1, 12)
    body = encode_coco(tiny_model_loaded.bundle.manifest, one, 139).body("unused")
    results = TypeAdapter(list[CocoResult]).validate_json(body, strict=True)
    assert [r.category_id for r in results] == [10 * (n + 1) for n in one.detections.labels]
    assert [list(r.bbox) for r in results] == pytest.approx(
        np.array(boxes_by_loops(one, BoxFormat.XYWH)), abs=1e-3
    )
    assert {r.image_id for r in results} == {139}


def test_yolo_has_one_line_for_each_object() -> None:
    one = outcome(2, 9)
    lines = encode_yolo(one).body("unused").decode().splitlines()
    for line, box, label, score in zip(
        lines,
        boxes_by_loops(one, BoxFormat.CXCYWH),
        one.detections.labels,
        one.detections.scores,
        strict=True,
    ):
        class_id, *numbers = line.split()
        assert int(class_id) == label
        expected = [box[0] / WIDTH, box[1] / HEIGHT, box[2] / WIDTH, box[3] / HEIGHT, score]
        assert [float(n) for n in numbers] == pytest.approx(expected, abs=2e-6)
    assert encode_yolo(outcome(2, 0)).body("unused") == b""


@pytest.mark.parametrize(
    ("given_id", "file_name", "expected"),
    [
        ("7", "x.jpg", 7),
        ("000000139", "", 139),
        ("a-7", "", "a-7"),
        ("٣", "", "٣"),
        (None, "000000139.jpg", 139),
        (None, "C:\\photos\\dog.1.png", "dog.1"),
        (None, "../../etc/passwd", "passwd"),
        ("9" * 19, "", "9" * 19),
    ],
)
def test_image_id_is_given_or_the_stem_of_the_file(
    given_id: str | None, file_name: str, expected: int | str
) -> None:
    assert image_id_of(given_id, file_name) == expected


def test_coco_without_any_image_id_is_refused() -> None:
    with pytest.raises(BadParameter, match="needs image_id"):
        image_id_of(None, "")


JPEG, PNG, WEBP = IMAGE_TYPES


@pytest.mark.parametrize(
    ("accept", "wanted", "expected"),
    [
        (None, None, (Format.JSON, "application/json")),
        ("", None, (Format.JSON, "application/json")),
        ("*/*", None, (Format.JSON, "application/json")),
        ("*/*", Format.IMAGE, (Format.IMAGE, JPEG)),
        ("*/*", Format.YOLO, (Format.YOLO, "text/plain")),
        ("application/json", Format.COCO, (Format.COCO, "application/json")),
        ("image/png", None, (Format.IMAGE, PNG)),
        ("image/*", None, (Format.IMAGE, JPEG)),
        ("image/webp, image/png;q=0.9", Format.IMAGE, (Format.IMAGE, WEBP)),
        ("image/*;q=0.5, image/png", None, (Format.IMAGE, PNG)),
        ("*/*;q=0.1, image/jpeg;q=0", Format.IMAGE, (Format.IMAGE, PNG)),
        ("TEXT/Plain; charset=utf-8", None, (Format.YOLO, "text/plain")),
        ("text/html, */*;q=0.8", None, (Format.JSON, "application/json")),
        ("application/problem+json, application/json", None, (Format.JSON, "application/json")),
    ],
)
def test_accept_and_format_decide(
    accept: str | None, wanted: Format | None, expected: tuple[Format, str]
) -> None:
    found = negotiate(accept, wanted)
    assert (found.format, found.media_type) == expected


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("text/html", None),
        ("application/xml;q=1, x", None),
        ("image/png", Format.JSON),
        ("application/json", Format.IMAGE),
        ("application/json;q=0", None),
        ("*/*;q=high", None),
        ("image/gif", Format.IMAGE),
    ],
)
def test_an_accept_header_that_cannot_be_met_is_refused(accept: str, wanted: Format | None) -> None:
    with pytest.raises(NotAcceptable) as caught:
        negotiate(accept, wanted)
    accepted = caught.value.extra["accepted"]
    assert isinstance(accepted, list)
    assert accepted == (
        ["application/json", *IMAGE_TYPES, "text/plain"]
        if wanted is None
        else ["application/json"]
        if wanted is Format.JSON
        else list(IMAGE_TYPES)
    )


@given(st.text(max_size=60))
def test_no_accept_header_is_too_strange(accept: str) -> None:
    try:
        media_type = negotiate(accept, None).media_type
    except NotAcceptable:
        media_type = ""
    assert media_type in ("", "application/json", *IMAGE_TYPES, "text/plain")


# --- through the server -----------------------------------------------------------------------


def test_each_format_over_http(server: str) -> None:
    coco = post(server, "format=coco")
    assert coco.headers["content-type"] == "application/json"
    assert [(r["image_id"], r["category_id"]) for r in coco.json()] == [
        (139, 10), (139, 20), (139, 30),
    ]  # fmt: skip
    assert coco.json()[1]["bbox"] == [32.0, 0.0, 32.0, 32.0]
    assert post(server, "format=coco&image_id=a").json()[0]["image_id"] == "a"
    yolo = post(server, "format=yolo")
    assert yolo.headers["content-type"] == "text/plain; charset=utf-8"
    assert yolo.text.splitlines()[1].startswith("1 0.500000 0.250000 0.333333 0.500000 0.78")
    assert post(server, accept="text/plain").text == yolo.text
    norm = post(server, "box_format=norm").json()
    assert norm["detections"][0]["box"] == [0, 0, 0.333333, 0.5]


@pytest.mark.parametrize(("media_type", "kind"), [(JPEG, "JPEG"), (PNG, "PNG"), (WEBP, "WEBP")])
def test_an_image_over_http(server: str, media_type: str, kind: str) -> None:
    answer = post(server, accept=media_type)
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert answer.headers["x-request-id"]
    image = Image.open(io.BytesIO(answer.content))
    assert (image.format, image.size) == (kind, (96, 64))


def test_what_cannot_be_answered_is_a_406_with_the_list(server: str) -> None:
    answer = post(server, accept="text/html")
    assert answer.status_code == 406
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not_acceptable"
    assert answer.json()["accepted"] == ["application/json", *IMAGE_TYPES, "text/plain"]
    assert post(server, "format=image", "application/json").status_code == 406
    raw = {"content": cells(), "headers": {"Content-Type": "image/png"}}
    refused = httpx.post(f"{server}/v1/detect?format=coco", timeout=PATIENCE_S, **raw)
    assert (refused.status_code, refused.json()["parameter"]) == (422, "image_id")
