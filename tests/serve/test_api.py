"""The HTTP interface, through a real server on a free port."""

import asyncio
import functools
import hashlib
import io
import re

import httpx
import numpy as np
import pytest
from PIL import Image

from clq_serve import slow_clients
from clq_serve.errors import ServeError
from clq_serve.image_bytes import ACCEPTED_FORMATS
from clq_serve.parameters import OPTIONS
from clq_serve.uploads import ACCEPTED_TYPES

BODY_LIMIT = 300_000
PATIENCE_S = 60  # how long anything may take on a machine that is busy with something else

send = functools.partial(httpx.post, timeout=PATIENCE_S)
get = functools.partial(httpx.get, timeout=PATIENCE_S)


def picture(kind: str = "PNG", **options: object) -> bytes:
    """96 x 64: one red, one green and one blue cell of falling strength on black."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :32] = (255, 0, 0)
    pixels[:32, 32:64] = (0, 200, 0)
    pixels[:32, 64:] = (0, 0, 150)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def post(server: str, data: bytes = b"", kind: str = "image/png", **more: object) -> httpx.Response:
    headers = {"Content-Type": kind} if kind else {}
    headers |= more.pop("headers", {})  # type: ignore[arg-type]
    return send(f"{server}/v1/detect", content=data, headers=headers, **more)


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"] == f"/docs#{code}"
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["instance"] == answer.request.url.path
    assert body["title"]
    assert body["detail"]
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text
    return body


def test_an_answer_has_the_documented_members(server: str) -> None:
    data = picture()
    answer = post(server, data)
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == ["id", "model", "image", "box_format", "detections", "timing_ms"]
    assert body["box_format"] == "xyxy"
    assert body["id"] == answer.headers["x-request-id"]
    assert (body["model"]["name"], body["model"]["version"]) == ("tiny", 1)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", body["model"]["digest"])
    assert body["image"] == {
        "width": 96,
        "height": 64,
        "orientation_applied": False,
        "format": "PNG",
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert [d["label"] for d in body["detections"]] == ["red", "green", "blue"]
    assert body["detections"][1] == {
        "box": [32.0, 0.0, 64.0, 32.0],
        "score": pytest.approx(200 / 255, abs=1e-5),
        "class_id": 1,
        "label": "green",
        "quality": 1.0,
        "cls_score": pytest.approx(200 / 255, abs=1e-5),
    }
    times = body["timing_ms"]
    assert list(times) == ["decode", "queue", "infer", "post", "total", "batch_size"]
    assert times["batch_size"] == 1
    assert times["total"] >= times["decode"] + times["infer"] + times["post"] > 0
    stages = answer.headers["server-timing"].split(", ")
    assert [stage.split(";")[0] for stage in stages] == [*list(times)[:-1], "encode"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-model-digest"] == body["model"]["digest"]


@pytest.mark.parametrize("field", ["image", "file", "images", "files"])
def test_a_form_gives_the_same_as_the_raw_body(server: str, field: str) -> None:
    raw = post(server, picture()).json()
    form = send(f"{server}/v1/detect", files={field: ("x.txt", picture())}).json()
    assert form["detections"] == raw["detections"]
    assert form["image"] == raw["image"]


@pytest.mark.parametrize("kind", ["application/octet-stream", "image/whatever", "IMAGE/PNG; a=b"])
def test_the_bytes_decide_the_format_not_the_content_type(server: str, kind: str) -> None:
    assert post(server, picture("BMP"), kind).json()["image"]["format"] == "BMP"


@pytest.mark.parametrize("kind", ACCEPTED_FORMATS)
def test_every_format_is_answered(server: str, kind: str) -> None:
    body = post(server, picture(kind)).json()
    assert body["image"]["format"] == kind
    assert body["detections"][0]["label"] == "red"


def test_boxes_are_of_the_upright_image(server: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    body = post(server, picture(exif=exif.tobytes())).json()
    assert body["image"]["orientation_applied"] is True
    assert (body["image"]["width"], body["image"]["height"]) == (64, 96)
    assert body["detections"][0]["box"] == [32.0, 0.0, 64.0, 32.0]


def test_options_are_obeyed(server: str) -> None:
    def labels(**params: object) -> list[str]:
        body = post(server, picture(), params=params).json()
        return [d["label"] for d in body["detections"]]

    assert labels(score=0.7) == ["red", "green"]
    assert labels(max=1) == ["red"]
    assert labels(classes="blue,green") == ["green", "blue"]
    assert labels(classes="blue", max=1, iou=0, score=0) == ["blue"]
    assert labels(score=1) == []
    assert labels(classes="2, red") == ["red", "blue"]


@pytest.mark.parametrize(
    ("query", "parameter", "word"),
    [
        ("score=7", "score", "less than or equal to 1"),
        ("score=-0.1", "score", "greater than or equal to 0"),
        ("score=nan", "score", "finite"),
        ("score=high", "score", "number"),
        ("iou=1.1", "iou", "less than or equal to 1"),
        ("max=0", "max", "greater than or equal to 1"),
        ("max=1001", "max", "less than or equal to 1000"),
        ("max=2.5", "max", "integer"),
        ("classes=red,cat", "classes", "'cat' is not a class of tiny; accepted: red, green, blue"),
        ("classes=", "classes", "accepted: red, green, blue"),
        ("classes=3", "classes", "'3' is not a class of tiny"),
        ("priority=high", "priority", "'interactive' or 'bulk'"),
        ("format=xml", "format", "'json', 'coco', 'yolo' or 'image'"),
        ("box_format=yx", "box_format", "'xyxy', 'xywh', 'cxcywh' or 'norm'"),
        ("threshold=0.5", "threshold", "accepted: score, iou, max, classes"),
        ("score=0.1&score=0.2", "score", "more than once"),
    ],
)
def test_a_wrong_parameter_is_named(server: str, query: str, parameter: str, word: str) -> None:
    answer = send(
        f"{server}/v1/detect?{query}", content=picture(), headers={"Content-Type": "image/png"}
    )
    body = assert_problem(answer, 422, "bad_parameter")
    assert body["parameter"] == parameter
    assert word in body["detail"]


@pytest.mark.parametrize("kind", ["", "text/plain", "text/json", "application/pdf"])
def test_another_content_type_is_refused_with_the_accepted_ones(server: str, kind: str) -> None:
    body = assert_problem(post(server, picture(), kind), 415, "wrong_content_type")
    assert body["accepted"] == list(ACCEPTED_TYPES)


def test_bytes_of_another_format_are_refused(server: str) -> None:
    body = assert_problem(post(server, picture("GIF")), 415, "unsupported_image")
    assert body["accepted"] == list(ACCEPTED_FORMATS)


def test_an_empty_body_is_refused(server: str) -> None:
    assert_problem(post(server), 400, "empty_body")
    empty_file = send(f"{server}/v1/detect", files={"image": ("a.png", b"")})
    assert_problem(empty_file, 400, "empty_body")


def test_a_form_without_exactly_one_image_is_refused(server: str) -> None:
    url, file = f"{server}/v1/detect", ("a.png", picture())
    text_only = send(url, files={"image": (None, "text")})
    assert_problem(text_only, 400, "missing_image")
    both = send(url, files={"image": file, "file": file})
    assert_problem(both, 400, "several_images")
    other = send(url, files={"photo": file})
    assert "'photo'" in assert_problem(other, 400, "unknown_field")["detail"]
    option = send(url, files={"image": file}, data={"threshold": "0.5"})
    assert "score" in assert_problem(option, 400, "unknown_field")["accepted"]
    many = send(url, files=[("image", file)] * 10)
    assert_problem(many, 400, "bad_form")
    nothing = post(server, b"--b--\r\n", "multipart/form-data; boundary=b")
    assert_problem(nothing, 400, "missing_image")
    unfinished = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc'
    assert_problem(post(server, unfinished, "multipart/form-data; boundary=b"), 400, "bad_form")
    assert_problem(post(server, b"--b", "multipart/form-data"), 400, "bad_form")
    assert_problem(post(server, b"no form", "multipart/form-data; boundary=b"), 400, "bad_form")


def test_a_truncated_and_a_corrupt_image_are_told_apart(server: str) -> None:
    whole = picture()
    assert_problem(post(server, whole[: len(whole) // 2]), 422, "truncated")
    corrupt = bytearray(whole)
    corrupt[len(whole) // 2] ^= 0xFF
    assert_problem(post(server, bytes(corrupt)), 422, "corrupt")


def test_too_many_pixels_are_refused_with_limit_and_observed(start_server) -> None:
    server = start_server(max_pixels=6000, max_side=500)
    body = assert_problem(post(server, picture()), 413, "image_too_large")
    assert (body["limit"], body["observed"]) == (6000, 96 * 64)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("form", [True, False])
def test_too_many_bytes_are_refused_with_limit_and_observed(
    start_server, declared: bool, form: bool
) -> None:
    server = start_server(max_body_bytes=BODY_LIMIT)
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    data = (head if form else b"") + bytes(5_000_000)
    kind = "multipart/form-data; boundary=b" if form else "image/png"
    chunks = (data[at : at + 50_000] for at in range(0, len(data), 50_000))
    answer = post(server, data if declared else chunks, kind)  # type: ignore[arg-type]
    body = assert_problem(answer, 413, "body_too_large")
    assert body["limit"] == BODY_LIMIT
    assert body["observed"] > BODY_LIMIT
    assert post(server, picture()).status_code == 200


def test_unknown_routes_and_methods_are_problems(server: str) -> None:
    assert_problem(get(f"{server}/nothing"), 404, "not_found")
    answer = get(f"{server}/v1/detect")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_a_usable_request_id_is_kept_and_another_replaced(server: str) -> None:
    kept = post(server, picture(), headers={"X-Request-ID": "Order-7.a_b"})
    assert kept.headers["x-request-id"] == kept.json()["id"] == "Order-7.a_b"
    for bad in ("a b", "x" * 129, "<script>"):
        replaced = post(server, picture(), headers={"X-Request-ID": bad})
        assert re.fullmatch(r"[0-9a-f]{32}", replaced.headers["x-request-id"])


def test_information_routes(server: str) -> None:
    (model,) = get(f"{server}/v1/models").json()["models"]
    assert (model["name"], model["classes"]) == ("tiny", ["red", "green", "blue"])
    assert model["thresholds"] == {"score": 0.3, "iou": 0.6, "max": 100}
    labels = get(f"{server}/v1/labels").json()["labels"]
    assert labels[2] == {"class_id": 2, "label": "blue", "category_id": 30}


def test_openapi_is_3_1_and_documents_the_problems(server: str) -> None:
    schema = get(f"{server}/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    route = schema["paths"]["/v1/detect"]["post"]
    for status in ("400", "408", "413", "415", "422", "500", "503", "504"):
        content = route["responses"][status]["content"]
        reference = content["application/problem+json"]["schema"]["$ref"]
        assert reference == "#/components/schemas/Problem"
    assert set(schema["components"]["schemas"]["Problem"]["required"]) >= {"code", "request_id"}
    assert set(route["requestBody"]["content"]) >= {"multipart/form-data", "image/*"}
    assert {p["name"] for p in route["parameters"] if p["in"] == "query"} == set(OPTIONS)


def all_codes(kind: type[ServeError]) -> set[str]:
    return {kind.code}.union(*(all_codes(child) for child in kind.__subclasses__()))


def test_every_problem_code_is_explained_on_the_documentation_page(server: str) -> None:
    page = get(f"{server}/docs").text
    never_sent = {"bad_request", "client_left"}  # a base word; the client has gone
    extra = {"empty_body", "missing_image", "several_images", "unknown_field", "bad_form"}
    extra |= {"too_many_images", "bad_json", "bad_encoding"}
    extra |= {"draining", "not_found", "unknown_key", *slow_clients.DETAILS}
    for code in (all_codes(ServeError) - never_sent) | extra:
        assert f'id="{code}"' in page, code


def test_forty_requests_at_once_each_get_their_own_answer(start_server) -> None:
    server = start_server(max_pending=40)

    def marked(index: int) -> bytes:
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[:32, :32, index % 3] = 120 + 3 * index
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    async def ask(client: httpx.AsyncClient, index: int) -> httpx.Response:
        headers = {"X-Request-ID": f"n{index}", "Content-Type": "image/png"}
        return await client.post("/v1/detect", content=marked(index), headers=headers)

    async def ask_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(base_url=server, limits=limits, timeout=PATIENCE_S) as client:
            return await asyncio.gather(*(ask(client, index) for index in range(40)))

    for index, answer in enumerate(asyncio.run(ask_all())):
        body = answer.json()
        assert body["id"] == f"n{index}"
        (found,) = body["detections"]
        assert found["class_id"] == index % 3
        assert found["cls_score"] == pytest.approx((120 + 3 * index) / 255, abs=1e-4)
