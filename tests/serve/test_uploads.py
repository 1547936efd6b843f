"""The ways to send an image and its options: forms, JSON, compressed bodies, headers."""

import base64
import gzip
import json
import socket
import zlib

import httpx
import pytest
from pictures import cells

from clq_serve.parameters import OPTIONS

PATIENCE_S = 60  # how long anything may take on a machine that is busy with something else


def post(server: str, path: str = "/v1/detect", **more: object) -> httpx.Response:
    return httpx.post(f"{server}{path}", timeout=PATIENCE_S, **more)  # type: ignore[arg-type]


def b64(data: bytes) -> dict:
    return {"b64": base64.b64encode(data).decode()}


def labels(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [found["label"] for found in answer.json()["detections"]]


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


def test_json_gives_the_same_as_the_raw_body(server: str) -> None:
    raw = post(server, content=cells(), headers={"Content-Type": "image/png"}).json()
    sent = post(server, json={"image": b64(cells())}).json()
    assert sent["detections"] == raw["detections"]
    assert sent["image"] == raw["image"]


def test_a_large_json_body_is_parsed_too(server: str) -> None:
    data = cells("BMP") + bytes(300_000)
    assert labels(post(server, json={"image": b64(data)})) == ["red", "green", "blue"]


def test_options_may_stand_beside_the_image(server: str) -> None:
    form = {"image": ("a.png", cells())}
    assert labels(post(server, files=form, data={"score": "0.7"})) == ["red", "green"]
    assert labels(post(server, files=form, data={"max": "1", "classes": "blue,red"})) == ["red"]
    tree = {"image": b64(cells())}
    assert labels(post(server, json=tree | {"score": 0.7})) == ["red", "green"]
    assert labels(post(server, json=tree | {"classes": ["green", "blue"], "max": 1})) == ["green"]
    assert labels(post(server, "/v1/detect?max=2", json=tree | {"score": 0.1})) == ["red", "green"]


def test_numbers_in_json_mean_what_they_mean_in_a_query(server: str) -> None:
    tree = {"image": b64(cells())}
    assert labels(post(server, json=tree | {"classes": 2, "max": 3.0})) == ["blue"]
    coco = post(server, json=tree | {"format": "coco", "image_id": 139}).json()
    assert {result["image_id"] for result in coco} == {139}
    for wrong in ({"score": 7}, {"max": 1.5}, {"max": 1e308}, {"iou": -0.1}):
        assert_problem(post(server, json=tree | wrong), 422, "bad_parameter")


@pytest.mark.parametrize("form", [True, False])
def test_an_option_in_the_query_and_in_the_body_is_refused(server: str, form: bool) -> None:
    sent = {"files": {"image": cells()}, "data": {"score": "0.5"}}
    sent = sent if form else {"json": {"image": b64(cells()), "score": 0.5}}
    body = assert_problem(post(server, "/v1/detect?score=0.5", **sent), 422, "bad_parameter")
    assert body["parameter"] == "score"
    assert "in the query and in the body" in body["detail"]


def test_a_wrong_option_in_a_body_is_named(server: str) -> None:
    answer = post(server, files={"image": cells()}, data={"score": "7"})
    assert assert_problem(answer, 422, "bad_parameter")["parameter"] == "score"
    answer = post(server, json={"image": b64(cells()), "max": 0})
    assert assert_problem(answer, 422, "bad_parameter")["parameter"] == "max"
    twice = [("image", ("a", cells())), ("score", (None, "0.5")), ("score", (None, "0.5"))]
    assert_problem(post(server, files=twice), 400, "bad_form")


@pytest.mark.parametrize(
    ("body", "code", "word"),
    [
        (b"", "bad_json", "Expecting value"),
        (b"[]", "bad_json", "not an object"),
        (b'{"image": [%s]}' % b",".join([b"[]"] * 100_000), "bad_json", "more than 20000 values"),
        (b"\xff\xff", "bad_json", "decode"),
        (b'{"image": {"b64": ""}', "bad_json", "delimiter"),
        (b"{}", "missing_image", "either image or images"),
        (b'{"image": {"b64": "AAAA"}, "images": []}', "missing_image", "either"),
        (b'{"images": []}', "missing_image", "empty"),
        (b'{"images": {}}', "bad_json", "not a list"),
        (b'{"image": "AAAA"}', "bad_json", "one member b64"),
        (b'{"image": {"url": "http://127.0.0.1/"}}', "bad_json", "one member b64"),
        (b'{"image": {"b64": 7}}', "bad_json", "a text"),
        (b'{"image": {"b64": "A%3D"}}', "bad_json", "not base64"),
        (b'{"image": {"b64": "AAA"}}', "bad_json", "not base64"),
        (b'{"image": {"b64": ""}}', "empty_body", "empty"),
        (b'{"image": {"b64": "AAAA"}, "image": {"b64": "AAAA"}}', "bad_json", "more than once"),
        (b'{"image": {"b64": "AAAA"}, "score": true}', "bad_json", "score"),
        (b'{"image": {"b64": "AAAA"}, "score": NaN}', "bad_json", "NaN"),
        (b'{"image": {"b64": "AAAA"}, "threshold": 1}', "unknown_field", "'threshold'"),
        (b'{"images": [{"b64": "AAAA"}, {"b64": "AAAA"}]}', "several_images", "batch"),
        (b"[" * 20_000, "bad_json", "deep"),
        (b'{"image": {"b64": "AAAA"}, "score": 1' + b"0" * 5000 + b"}", "bad_json", "digits"),
    ],
)
def test_json_that_is_not_accepted_is_refused(
    server: str, body: bytes, code: str, word: str
) -> None:
    answer = post(server, content=body, headers={"Content-Type": "application/json"})
    assert word in assert_problem(answer, 400, code)["detail"]


@pytest.mark.parametrize("name", ["score", "classes", "format", "image_id"])
def test_half_a_surrogate_pair_is_refused_like_any_wrong_text(server: str, name: str) -> None:
    good = {"image": b64(cells()), "format": "coco", "image_id": "1"}
    body = json.dumps(good | {name: "\ud800"})  # is ASCII
    answer = post(server, content=body, headers={"Content-Type": "application/json"})
    assert assert_problem(answer, 422, "bad_parameter")["parameter"] == name


# --- compressed bodies ------------------------------------------------------------------------


def coded(data: bytes, coding: str) -> dict:
    return {"content": data, "headers": {"Content-Type": "image/bmp", "Content-Encoding": coding}}


def test_a_compressed_body_is_inflated(server: str) -> None:
    data = cells("BMP")
    for coding, sent in (("gzip", gzip.compress(data)), ("Deflate", zlib.compress(data))):
        assert len(sent) < len(data)
        assert labels(post(server, **coded(sent, coding))) == ["red", "green", "blue"]
    assert labels(post(server, **coded(data, "identity"))) == ["red", "green", "blue"]


def test_compressed_json_is_inflated(server: str) -> None:
    sent = gzip.compress(json.dumps({"image": b64(cells("BMP"))}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert labels(post(server, content=sent, headers=headers)) == ["red", "green", "blue"]


@pytest.mark.parametrize("layers", [1, 2])
def test_a_bomb_is_refused_with_the_limit(start_server, layers: int) -> None:
    server = start_server(max_body_bytes=300_000)
    bomb = gzip.compress(bytes(20_000_000), 9)
    assert len(bomb) < 300_000
    for _ in range(layers - 1):
        bomb = gzip.compress(bomb)
    if layers == 1:
        body = assert_problem(post(server, **coded(bomb, "gzip")), 413, "body_too_large")
        assert body["limit"] == 300_000
        assert body["observed"] < 300_000 + 2**19  # noticed at the first step over the limit
    else:
        answer = post(server, **coded(bomb, "gzip, gzip"))
        assert assert_problem(answer, 415, "unsupported_encoding")["accepted"][0] == "gzip"
    assert labels(post(server, **coded(cells("BMP"), "identity"))) == ["red", "green", "blue"]


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, deflate", "x"])
def test_other_codings_are_refused(server: str, coding: str) -> None:
    body = assert_problem(post(server, **coded(b"x", coding)), 415, "unsupported_encoding")
    assert body["accepted"] == ["gzip", "deflate", "identity"]


@pytest.mark.parametrize(
    "sent",
    [
        b"plain",
        gzip.compress(cells())[:-4],
        gzip.compress(cells())[:20],
        gzip.compress(cells()) + b"more",
        gzip.compress(b"a") + gzip.compress(b"b"),
        b"",
    ],
)
def test_a_body_that_is_not_what_its_coding_says_is_refused(server: str, sent: bytes) -> None:
    assert_problem(post(server, **coded(sent, "gzip")), 400, "bad_encoding")


# --- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "1e3", "9" * 10])
def test_a_wrong_timeout_is_refused(server: str, value: str) -> None:
    headers = {"Content-Type": "image/png", "X-Request-Timeout-Ms": value}
    answer = post(server, content=cells(), headers=headers)
    assert assert_problem(answer, 422, "bad_parameter")["parameter"] == "X-Request-Timeout-Ms"


def test_the_timeout_of_the_client_is_obeyed(server: str) -> None:
    lines = ["POST /v1/detect HTTP/1.1", "Host: x", "Content-Type: image/png", "Content-Length: 99"]
    head = "\r\n".join([*lines, "X-Request-Timeout-Ms: 200", "", ""])
    port = int(server.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(head.encode() + b"only this")
        received = connection.recv(10_000).decode()
    assert received.startswith("HTTP/1.1 408 ")
    assert "0.2 s" in received


def test_priority_by_header_or_option(server: str) -> None:
    def send(query: str, header: str) -> httpx.Response:
        headers = {"Content-Type": "image/png", "X-Priority": header}
        return post(server, f"/v1/detect?{query}", content=cells(), headers=headers)

    assert len(labels(send("", "bulk"))) == 3
    assert len(labels(send("priority=bulk", "bulk"))) == 3
    assert_problem(send("priority=interactive", "bulk"), 422, "bad_parameter")
    body = assert_problem(send("", "urgent"), 422, "bad_parameter")
    assert body["accepted"] == ["interactive", "bulk"]


# --- models --------------------------------------------------------------------------------------


def test_model_and_version_may_be_in_the_path(server: str) -> None:
    raw = {"content": cells(), "headers": {"Content-Type": "image/png"}}
    for path in ("/v1/models/tiny/detect", "/v1/models/tiny/versions/1/detect"):
        assert labels(post(server, path, **raw)) == ["red", "green", "blue"]
        found = httpx.get(server + path.replace("detect", "labels"), timeout=PATIENCE_S).json()
        assert [entry["label"] for entry in found["labels"]] == ["red", "green", "blue"]


@pytest.mark.parametrize(
    "model", ["big", "tiny/versions/2", "tiny/versions/0", "tiny/versions/x", "tiny/versions/01"]
)
def test_a_model_that_is_not_there_is_a_404_before_the_body_is_read(
    server: str, model: str
) -> None:
    answer = post(server, f"/v1/models/{model}/detect", content=b"of no content type")
    assert_problem(answer, 404, "unknown_model")
    answer = httpx.get(f"{server}/v1/models/{model}/labels", timeout=PATIENCE_S)
    assert_problem(answer, 404, "unknown_model")
    digits = "9" * 5000
    answer = httpx.get(f"{server}/v1/models/tiny/versions/{digits}/labels", timeout=PATIENCE_S)
    assert_problem(answer, 404, "unknown_model")


def test_every_option_is_a_form_field_too(server: str) -> None:
    assert OPTIONS[:4] == ("score", "iou", "max", "classes")
    values = ("0.1", "0.5", "2", "red,green", "bulk", "json", "xywh", "7")
    fields = dict(zip(OPTIONS, values, strict=True))
    body = post(server, files={"image": cells()}, data=fields).json()
    assert body["box_format"] == "xywh"
    assert [d["label"] for d in body["detections"]] == ["red", "green"]
