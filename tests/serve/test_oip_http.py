"""The Open Inference Protocol as bytes on the wire: what no client library would send, too."""

import asyncio
import base64
import functools
import gzip
import io
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clq_serve.admin_app import create_admin_app
from clq_serve.app import create_app
from clq_serve.bundle import load_bundle
from clq_serve.candidates import Candidates
from clq_serve.detector import Detector
from clq_serve.engine import OnnxEngine
from clq_serve.loading import LoadedModel
from clq_serve.models import ModelStore
from clq_serve.nms import ClassNms
from clq_serve.service import DetectService
from clq_serve.settings import Settings

LENGTH = "Inference-Header-Content-Length"
RAW = {LENGTH: "0"}
PATIENCE_S = 60  # how long anything may take on a machine that is busy with something else

# verify=False: loading the certificates, which http does not need, is what such a call mostly does
send = functools.partial(httpx.post, timeout=PATIENCE_S, verify=False)
get = functools.partial(httpx.get, timeout=PATIENCE_S, verify=False)


def picture() -> bytes:
    """A red, a green and a blue cell of falling strength on black, 96 x 64, as PNG."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    for index in range(3):
        pixels[:32, 32 * index : 32 * index + 32, index] = 250 - 50 * index
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def json_request(*files: bytes, **more: object) -> bytes:
    data = [base64.b64encode(file).decode() for file in files]
    tensor = {"name": "image", "shape": [len(files)], "datatype": "BYTES", "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


def pixel_request(data: bytes, shape: list[int], **more: object) -> tuple[bytes, dict[str, str]]:
    size = {"binary_data_size": len(data)}
    tensor = {"name": "images", "shape": shape, "datatype": "UINT8", "parameters": size}
    text = json.dumps({"inputs": [tensor], **more}).encode()
    return text + data, {LENGTH: str(len(text))}


def infer(server: str, content: bytes, name: str = "tiny_image", **headers: str) -> httpx.Response:
    return send(f"{server}/v2/models/{name}/infer", content=content, headers=headers)


def assert_error(answer: httpx.Response, status: int, code: str) -> str:
    """The text of the error, which has the members of the protocol and of RFC 9457."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["code"] == code
    assert (body["status"], body["type"]) == (status, f"/docs#{code}")
    assert body["error"] == body["detail"]
    assert "Traceback" not in answer.text
    return str(body["error"])


def test_the_bare_image_is_a_request(server: str) -> None:
    answer = send(f"{server}/v2/models/tiny_image/infer", content=picture(), headers=RAW)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers[LENGTH])
    head = json.loads(answer.content[:length])
    assert "id" not in head
    sizes = [output["parameters"]["binary_data_size"] for output in head["outputs"]]
    assert length + sum(sizes) == len(answer.content)
    boxes = np.frombuffer(answer.content[length + 4 :], "<f4", 12).reshape(3, 4)
    assert boxes.tolist() == [[0, 0, 32, 32], [32, 0, 64, 32], [64, 0, 96, 32]]


def test_the_bare_image_can_be_answered_as_json_and_has_its_parameters_in_the_query(
    server: str,
) -> None:
    headers = RAW | {"Accept": "application/json"}
    url = f"{server}/v2/models/tiny_image/versions/1/infer"
    query = {"score_threshold": "0.7", "max_detections": "5", "classes": "green,blue"}
    answer = send(url, content=picture(), headers=headers, params=query)
    assert answer.headers["content-type"] == "application/json"
    assert LENGTH not in answer.headers
    outputs = {output["name"]: output for output in answer.json()["outputs"]}
    assert outputs["boxes"]["data"] == [32, 0, 64, 32]
    for wrong in ("classes=red&clases=red", "max_detections=nan", "max_detections=" + "9" * 5000):
        error = assert_error(
            send(f"{url}?{wrong}", content=picture(), headers=headers), 400, "bad_infer_request"
        )
        assert "accepted" in error


def test_the_bare_body_is_refused_where_its_shape_is_not_known(server: str) -> None:
    answer = send(f"{server}/v2/models/tiny/infer", content=b"x" * 64, headers=RAW)
    assert "tiny_image" in assert_error(answer, 400, "bad_infer_request")


def test_the_bare_body_may_be_compressed(server: str) -> None:
    for coding, content in (
        ("gzip", gzip.compress(picture())),
        ("deflate", zlib.compress(picture())),
    ):
        headers = {**RAW, "Content-Encoding": coding, "Accept-Encoding": "identity"}
        assert infer(server, content, **headers).status_code == 200


def test_image_files_in_json_are_base64(server: str) -> None:
    answer = infer(server, json_request(picture(), picture(), id="of mine"))
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["model_name", "model_version", "id", "outputs"]
    assert (body["model_name"], body["model_version"], body["id"]) == ("tiny_image", "1", "of mine")
    assert body["outputs"][0] == {
        "name": "num_dets",
        "datatype": "INT32",
        "shape": [2, 1],
        "data": [3, 3],
    }
    bad = json_request(picture()).replace(b"iVBOR", b"!!!!!")
    assert "base64" in assert_error(infer(server, bad), 400, "bad_infer_request")


def test_large_json_is_read_beside_the_event_loop(server: str) -> None:
    data = base64.b64encode(
        picture() + bytes(100_000)
    ).decode()  # what follows the image is nothing
    bodies = [json_request(picture()), json_request(base64.b64decode(data))]
    answers = [infer(server, body).json()["outputs"][1]["data"] for body in bodies]
    assert answers[0] == answers[1]
    many = json.dumps({"inputs": [], "x": [0] * 2_000_001}).encode()
    assert "binary data" in assert_error(infer(server, many), 413, "body_too_large")


def test_a_column_of_image_files_is_accepted(server: str) -> None:
    tree = json.loads(json_request(picture()))
    tree["inputs"][0]["shape"] = [1, 1]
    assert infer(server, json.dumps(tree).encode()).status_code == 200
    tree["inputs"][0]["shape"] = [1, 1, 1]
    answer = infer(server, json.dumps(tree).encode())
    assert r"accepted: [N] or [N, 1]" in assert_error(answer, 400, "bad_infer_request")


def test_no_header_but_the_hosts_is_needed(server: str) -> None:
    request = httpx.Request("POST", f"{server}/v2/models/tiny_image/infer", content=json_request())
    for name in ("accept", "content-type", "user-agent"):
        request.headers.pop(name, None)
    with httpx.Client(timeout=PATIENCE_S) as client:
        assert_error(client.send(request), 400, "bad_infer_request")
    index = httpx.Request("POST", f"{server}/v2/repository/index")
    with httpx.Client(timeout=PATIENCE_S) as client:
        assert client.send(index).status_code == 200


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", None),
        ("br", None),
        ("deflate;q=0.5, identity;q=0.1", "deflate"),
        ("identity", None),
    ],
)
def test_answers_are_compressed_only_when_that_is_asked_for(
    server: str, accept: str, coding: str | None
) -> None:
    answer = infer(server, json_request(picture()), **{"Accept-Encoding": accept})
    assert answer.headers.get("content-encoding") == coding
    assert answer.json()["outputs"][0]["data"] == [3]  # httpx expands it
    for path in ("/v2", "/v2/models/tiny", "/v2/models/tiny/config", "/v2/models/stats"):
        plain = get(f"{server}{path}", headers={"Accept-Encoding": accept})
        assert "content-encoding" not in plain.headers


@pytest.mark.parametrize("coding", ["br", "zstd", "compress"])
def test_another_coding_of_the_body_is_refused(server: str, coding: str) -> None:
    answer = infer(server, b"x", **{"Content-Encoding": coding})
    assert_error(answer, 415, "unsupported_encoding")
    assert answer.headers["accept-encoding"] == "gzip, deflate"


def test_a_damaged_compressed_body_is_refused(server: str) -> None:
    good = gzip.compress(json_request(picture()))
    for bad in (b"plain", good[:-1], good[: len(good) // 2], good + b"x"):
        answer = infer(server, bad, **{"Content-Encoding": "gzip"})
        assert "gzip" in assert_error(answer, 400, "bad_encoding")


@pytest.mark.parametrize(
    ("length", "named"),
    [("-1", "range"), ("ten", "range"), ("100000", "range"), ("5", "JSON"), ("", "range")],
)
def test_a_wrong_json_length_is_refused(server: str, length: str, named: str) -> None:
    body, _ = pixel_request(bytes(64 * 64 * 3), [1, 64, 64, 3])
    answer = infer(server, body, "tiny", **{LENGTH: length})
    assert named in assert_error(answer, 400, "bad_infer_request")


def test_truncated_binary_data_are_refused(server: str) -> None:
    body, headers = pixel_request(bytes(64 * 64 * 3), [1, 64, 64, 3])
    assert infer(server, body, "tiny", **headers).status_code == 200
    for cut in (1, 100, 64 * 64 * 3):
        answer = infer(server, body[:-cut], "tiny", **headers)
        assert "are left of the body" in assert_error(answer, 400, "bad_infer_request")
    answer = infer(server, body + b"x", "tiny", **headers)
    assert "1 bytes follow" in assert_error(answer, 400, "bad_infer_request")


def test_too_large_a_body_is_refused_before_and_after_expansion(start_server) -> None:
    server = start_server(max_body_bytes=10_000)
    assert_error(infer(server, b" " * 10_001), 413, "body_too_large")
    bomb = gzip.compress(b" " * 10_001)
    assert len(bomb) < 1000
    assert_error(infer(server, bomb, **{"Content-Encoding": "gzip"}), 413, "body_too_large")
    assert infer(server, picture(), **RAW).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/models/huge", 404, "unknown_model"),
        ("GET", "/v2/models/huge/ready", 404, "unknown_model"),
        ("GET", "/v2/models/tiny/versions/2/config", 404, "unknown_model"),
        ("GET", "/v2/models/tiny/versions/01", 404, "unknown_model"),
        ("GET", f"/v2/models/tiny/versions/{'9' * 5000}", 404, "unknown_model"),
        ("GET", "/v2/models/tiny/nothing", 404, "not_found"),
        ("GET", "/v2/models/tiny/infer", 405, "method_not_allowed"),
        ("POST", "/v2/models/tiny", 405, "method_not_allowed"),
        ("GET", "/v2/systemsharedmemory/status", 403, "forbidden"),
        ("POST", "/v2/cudasharedmemory/region/x/register", 403, "forbidden"),
        ("POST", "/v2/repository/models/tiny/load", 403, "forbidden"),
        ("POST", "/v2/repository/models/tiny/unload", 403, "forbidden"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_errors_are_those_of_the_protocol(
    server: str, method: str, path: str, status: int, code: str
) -> None:
    assert_error(httpx.request(method, server + path, timeout=PATIENCE_S), status, code)


def test_small_routes_are_as_kserve_and_triton_have_them(server: str) -> None:
    assert get(f"{server}/v2/health/live").json() == {"live": True}
    assert get(f"{server}/v2/health/ready").json() == {"ready": True}
    assert get(f"{server}/v2/models").json() == {"models": ["tiny", "tiny_image"]}
    assert get(f"{server}/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    index = send(f"{server}/v2/repository/index", content=b'{"ready":true}')
    assert [line["name"] for line in index.json()] == ["tiny", "tiny_image"]
    assert send(f"{server}/v2/repository/mine/index").json() == index.json()


@pytest.mark.parametrize("body", [b"[1]", b"{", b'{"ready":1}', b"[" * 9999])
def test_a_malformed_question_for_the_index_is_refused(server: str, body: bytes) -> None:
    assert_error(send(f"{server}/v2/repository/index", content=body), 400, "bad_infer_request")


def test_a_service_that_is_stopping_is_live_but_not_ready(tiny_model_loaded: LoadedModel) -> None:
    app = create_app(Settings(threads=1), ModelStore([tiny_model_loaded]))

    async def steps() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            assert (await client.get("/v2/health/ready")).status_code == 200
            app.state.service.draining = True
            assert_error(await client.get("/v2/health/ready"), 503, "draining")
            assert (await client.get("/v2/health/live")).status_code == 200

    asyncio.run(steps())


def test_only_ready_models_are_listed_where_that_is_asked(start_server, repository) -> None:
    repository("first", 1)
    repository("first", 2)
    server = start_server(bundle=None, models=repository.root)
    everything = send(f"{server}/v2/repository/index").json()
    states = {(line["name"], line["version"]): line["state"] for line in everything}
    assert states == {
        ("first", "1"): "UNAVAILABLE",
        ("first", "2"): "READY",
        ("first_image", "1"): "UNAVAILABLE",
        ("first_image", "2"): "READY",
    }
    ready = send(f"{server}/v2/repository/index", content=b'{"ready":true}').json()
    assert [(line["name"], line["version"]) for line in ready] == [
        ("first", "2"),
        ("first_image", "2"),
    ]
    assert get(f"{server}/v2/models/first").json()["versions"] == ["2"]


def test_versions_are_chosen_by_the_url_and_the_newest_without(start_server, repository) -> None:
    repository("first", 1)
    repository("first", 2)
    server = start_server(bundle=None, models=repository.root, versions_kept=2)
    assert get(f"{server}/v2/models/first_image").json()["versions"] == ["1", "2"]
    for path, version in (("", "2"), ("/versions/1", "1"), ("/versions/2", "2")):
        url = f"{server}/v2/models/first_image{path}/infer"
        assert send(url, content=json_request(picture())).json()["model_version"] == version
    stats = get(f"{server}/v2/models/first_image/stats").json()["model_stats"]
    assert {s["version"]: s["inference_count"] for s in stats} == {"1": 1, "2": 2}
    config = get(f"{server}/v2/models/first/config").json()
    assert config["version_policy"] == {"latest": {"num_versions": 2}}


def test_a_bundle_whose_name_is_that_of_an_image_model_goes_before_it(
    start_server, repository
) -> None:
    repository("a", 1)
    repository("a_image", 1)
    server = start_server(bundle=None, models=repository.root)
    names = ["a", "a_image", "a_image_image"]
    assert get(f"{server}/v2/models").json() == {"models": names}
    index = send(f"{server}/v2/repository/index").json()
    assert [line["name"] for line in index] == names
    assert get(f"{server}/v2/models/a_image").json()["inputs"][0]["name"] == "images"


def test_the_admin_listener_loads_and_unloads(repository) -> None:
    repository("first", 1)
    repository("second", 1)
    values = Settings(models=repository.root, threads=1)
    service = DetectService(ModelStore.open(values), values)

    async def steps() -> None:
        admin = httpx.ASGITransport(create_admin_app(service))
        async with httpx.AsyncClient(transport=admin, base_url="http://x") as client:
            for name, states in (("unload", ("UNAVAILABLE", "UNLOADING")), ("load", ("READY",))):
                answer = await client.post(f"/v2/repository/models/second_image/{name}")
                assert (answer.status_code, answer.json()) == (200, {})
                lines = (await client.post("/v2/repository/index")).json()
                assert {line["name"]: line["state"] for line in lines}["second"] in states
            answer = await client.post("/v2/repository/models/first/unload")
            assert_error(answer, 409, "last_version")

    try:
        asyncio.run(steps())
    finally:
        service.close()
        service.models.close()


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


@pytest.fixture
def gate(tiny_bundle: Path) -> Iterator[GatedEngine]:
    engine = GatedEngine(OnnxEngine(load_bundle(tiny_bundle), threads=1))
    yield engine
    engine.open.set()


def behind(gate: GatedEngine, folder: Path) -> LoadedModel:
    bundle = load_bundle(folder)
    detector = Detector(gate, ClassNms(), bundle.manifest.input.rule)
    return LoadedModel(bundle, (detector,), None, "test", 0)


def wait_for(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_queue_is_a_503_with_retry_after(
    start_server, gate: GatedEngine, tiny_bundle: Path
) -> None:
    server = start_server(behind(gate, tiny_bundle), queue_images=3)
    with ThreadPoolExecutor(1) as pool:
        inside = pool.submit(infer, server, json_request(picture()))
        wait_for(lambda: gate.calls == 1)
        answer = infer(server, json_request(*[picture()] * 8))
        assert_error(answer, 503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        gate.open.set()
        assert inside.result().status_code == 200
    assert infer(server, json_request(picture())).status_code == 200
    stats = get(f"{server}/v2/models/tiny_image/stats").json()["model_stats"][0]["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (2, 1)


def test_one_request_does_not_fill_the_queue_by_itself(start_server) -> None:
    server = start_server(queue_images=8)
    answer = infer(server, json_request(*[picture()] * 32))
    assert answer.json()["outputs"][0]["data"] == [3] * 32


def test_headers_of_the_service_are_honoured_here_too(server: str) -> None:
    answer = infer(server, json_request(picture()), **{"X-Request-ID": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-model-digest"].startswith("sha256:")
    assert "infer;dur=" in answer.headers["server-timing"]
    bulk = infer(server, json_request(picture()), **{"X-Priority": "bulk"})
    assert bulk.status_code == 200
    for headers in ({"X-Priority": "high"}, {"X-Request-Timeout-Ms": "soon"}):
        assert_error(infer(server, json_request(picture()), **headers), 422, "bad_parameter")


def test_a_timeout_in_microseconds_is_a_504_that_names_the_stage(
    start_server, gate: GatedEngine, tiny_bundle: Path
) -> None:
    server = start_server(behind(gate, tiny_bundle))
    answer = infer(server, json_request(picture(), parameters={"timeout": 300_000}))
    assert "within 0.3 s" in assert_error(answer, 504, "deadline_exceeded")
    assert answer.json()["limit"] == 0.3
    answer = infer(server, json_request(picture()), **{"X-Request-Timeout-Ms": "300"})
    assert "within 0.3 s" in assert_error(answer, 504, "deadline_exceeded")
    gate.open.set()


@pytest.fixture(scope="module")
def kept_open() -> Iterator[httpx.Client]:
    """One connection for many requests."""
    with httpx.Client(timeout=PATIENCE_S) as client:
        yield client


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_damaged_request_is_a_500(
    server: str, kept_open: httpx.Client, data: st.DataObject
) -> None:
    body, headers = data.draw(
        st.sampled_from(
            [
                (json_request(picture()), {}),
                pixel_request(bytes(64 * 64 * 3), [1, 64, 64, 3], id="x"),
                (gzip.compress(json_request(picture())), {"Content-Encoding": "gzip"}),
                (picture(), RAW),
            ]
        )
    )
    at = data.draw(st.integers(0, min(400, len(body) - 1)))
    changed = data.draw(
        st.sampled_from([body[:at], body[:at] + b"\xff" + body[at + 1 :], body[at:]])
    )
    name = data.draw(st.sampled_from(["tiny", "tiny_image"]))
    url = f"{server}/v2/models/{name}/infer"
    answer = kept_open.post(url, content=changed, headers=headers)
    assert answer.status_code in (200, 400, 415, 422)
