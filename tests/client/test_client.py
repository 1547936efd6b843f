"""One call of either client: what is sent, what comes back, what goes wrong."""

import asyncio
import gc
import io
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from clq_client import (
    AsyncClient,
    BadRequest,
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    DetectResult,
    ImageRefused,
    NotAllowed,
    NotReady,
    Overloaded,
    ServerFault,
    UnexpectedAnswer,
    UnknownModel,
)

SETTINGS = ("deadline_s", "retries", "api_key", "model", "version", "priority", "proxy", "ca_file")


def detect_sync(url, image, **options):
    settings = {name: options.pop(name) for name in SETTINGS if name in options}
    with Client(url, **settings) as client:
        return client.detect(image, **options)


def detect_async(url, image, **options):
    settings = {name: options.pop(name) for name in SETTINGS if name in options}

    async def call():
        async with AsyncClient(url, **settings) as client:
            return await client.detect(image, **options)

    return asyncio.run(call())


@pytest.fixture(params=[detect_sync, detect_async], ids=["sync", "async"])
def detect(request):
    return request.param


def test_an_answer_becomes_a_result_and_back_the_same_json(peer, png, detect, answer):
    result = detect(peer.url, png)
    assert isinstance(result, DetectResult)
    assert result.id == peer.seen[0].headers["x-request-id"]
    assert (result.image.width, result.image.height, result.image.format) == (400, 200, "PNG")
    assert [d.label for d in result.detections] == ["button", "text field"]
    assert result.detections[0].box == (100.0, 50.0, 300.0, 150.0)
    expected = answer | {"id": result.id}
    expected["image"] |= {"sha256": result.image.sha256}
    assert result.to_dict() == expected


def test_options_go_into_the_query_and_what_is_not_given_does_not(peer, png, detect):
    detect(peer.url, png, score=0.25, iou=0.5, max=7, classes=["button", "text field"])
    detect(peer.url, png)
    assert peer.seen[0].query == {
        "score": ["0.25"],
        "iou": ["0.5"],
        "max": ["7"],
        "classes": ["button,text field"],
    }
    assert peer.seen[1].query == {}
    assert peer.seen[0].body == png
    assert peer.seen[0].headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("classes", ["button", [], ["a,b"], [""]])
def test_classes_that_cannot_be_sent_are_refused_before_sending(peer, png, detect, classes):
    with pytest.raises(ValueError, match="classes"):
        detect(peer.url, png, classes=classes)
    assert peer.seen == []


def test_files_and_bytes_are_sent_as_they_are(peer, png, detect, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png)
    with path.open("rb") as file:
        for image in (path, str(path), png, bytearray(png), memoryview(png), file):
            detect(peer.url, image)
    assert [seen.body for seen in peer.seen] == [png] * 6


PIXELS = np.arange(5 * 7 * 4, dtype=np.uint8).reshape(5, 7, 4)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (PIXELS, PIXELS),
        (PIXELS[:, :, :3], PIXELS[:, :, :3]),
        (PIXELS[:, :, 0], PIXELS[:, :, 0]),
        (Image.fromarray(PIXELS), PIXELS),
        (Image.fromarray(PIXELS[:, :, :3]), PIXELS[:, :, :3]),
    ],
    ids=["rgba array", "rgb array", "grey array", "RGBA picture", "RGB picture"],
)
def test_pixels_are_sent_as_png_without_loss(peer, detect, image, expected):
    detect(peer.url, image)
    with Image.open(io.BytesIO(peer.seen[0].body)) as sent:
        assert sent.format == "PNG"
        assert np.array_equal(np.asarray(sent), expected)


def test_a_picture_is_sent_without_its_exif_so_that_boxes_fit_its_pixels(peer, detect):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(file, "JPEG", exif=exif)
    with Image.open(file) as picture:
        result = detect(peer.url, picture)
    assert (result.image.width, result.image.height) == (40, 20)


@pytest.mark.parametrize(
    "image",
    [3, None, io.StringIO("text"), PIXELS.astype(float), PIXELS[0, 0], Image.new("F", (2, 2))],
    ids=["int", "None", "text file", "float array", "vector", "float picture"],
)
def test_what_is_no_image_is_refused_before_sending(peer, detect, image):
    with pytest.raises(TypeError):
        detect(peer.url, image)
    assert peer.seen == []


def test_a_path_that_is_not_there_is_the_usual_python_error(peer, detect, tmp_path):
    with pytest.raises(FileNotFoundError):
        detect(peer.url, tmp_path / "none.png")


STATUSES = [
    (400, "bad_request", BadRequest),
    (401, "no_key", NotAllowed),
    (403, "wrong_scope", NotAllowed),
    (404, "unknown_model", UnknownModel),
    (404, "not_found", BadRequest),
    (408, "upload_timeout", DeadlineExceeded),
    (413, "image_too_large", ImageRefused),
    (415, "unsupported_image", ImageRefused),
    (422, "truncated", ImageRefused),
    (422, "corrupt", ImageRefused),
    (422, "bad_parameter", BadRequest),
    (429, "rate", Overloaded),
    (500, "internal", ServerFault),
    (502, "", ServerFault),
    (503, "overloaded", Overloaded),
    (503, "draining", NotReady),
    (504, "deadline_exceeded", DeadlineExceeded),
]


@pytest.mark.parametrize(("status", "code", "kind"), STATUSES)
def test_each_status_has_its_exception(peer, png, detect, status, code, kind):
    peer.problem(status, code)
    with pytest.raises(kind) as caught:
        detect(peer.url, png, retries=0)
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.detail) == (status, code, f"detail of {code}")
    assert error.request_id == peer.seen[0].headers["x-request-id"]
    assert str(status) in str(error)
    assert error.request_id in str(error)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<html>Bad gateway</html>", "text/html"),
        (b"", "text/plain"),
        (b'{"detail": 3', "application/problem+json"),
        (b"[1, 2]", "application/problem+json"),
        (b'{"detail": {"not": "text"}, "code": 7}', "application/problem+json"),
    ],
)
def test_an_error_without_a_problem_has_its_status_and_id(peer, png, detect, body, content_type):
    peer.answers(status=502, body=body, content_type=content_type, headers={"X-Request-ID": "px"})
    with pytest.raises(ServerFault, match="status 502") as caught:
        detect(peer.url, png, retries=0)
    assert (caught.value.code, caught.value.request_id) == ("", "px")


def test_the_request_id_of_the_body_counts_where_no_header_has_one(peer, png, detect):
    step = peer.problem_step(400, "bad_request")
    step.headers["X-Request-ID"] = ""
    peer.steps.append(step)
    with pytest.raises(BadRequest) as caught:
        detect(peer.url, png)
    assert caught.value.request_id == "from-the-body"


@pytest.mark.parametrize(
    "body",
    [b"<html>hello</html>", b"", b"{}", b"[]", b'{"id": NaN}', b"\xff\xfe", b"[" * 100_000],
    ids=["html", "empty", "no members", "list", "NaN", "not utf-8", "deep"],
)
def test_a_200_that_is_not_the_interface_is_an_unexpected_answer(peer, png, detect, body):
    peer.answers(body=body, content_type="text/html")
    with pytest.raises(UnexpectedAnswer) as caught:
        detect(peer.url, png)
    assert caught.value.request_id == peer.seen[0].headers["x-request-id"]
    assert caught.value.status == 200
    assert len(peer.seen) == 1


def test_a_redirect_is_told_and_not_followed(peer, png, detect):
    peer.answers(status=307, body=b"", headers={"Location": peer.url + "/elsewhere"})
    with pytest.raises(UnexpectedAnswer, match="status 307"):
        detect(peer.url, png)
    assert len(peer.seen) == 1


def test_a_server_that_is_not_there_is_named(detect, png):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionFailed, match=url) as caught:
            detect(url, png, retries=1)
    assert caught.value.attempts == 2
    assert caught.value.status is None


def test_models_labels_and_readiness(peer):
    async def ask():
        async with AsyncClient(peer.url) as client:
            return await client.models(), await client.labels(), await client.ready()

    with Client(peer.url) as client:
        models, labels, ready = client.models(), client.labels(), client.ready()
    assert asyncio.run(ask()) == (models, labels, ready)
    assert (models[0].name, models[0].version) == ("fake", 3)
    assert [item.label for item in labels] == ["button", "text field"]
    assert ready is True


def test_a_draining_service_is_not_ready_and_asked_once(peer):
    peer.problem(503, "draining", retry_after=1)
    with Client(peer.url) as client:
        assert client.ready() is False
        assert len(peer.seen) == 1
        peer.problem(500)
        with pytest.raises(ServerFault):
            client.ready()


def test_labels_out_of_order_are_refused(peer):
    peer.answers(body=b'{"labels": [{"class_id": 1, "label": "a"}]}')
    with Client(peer.url) as client, pytest.raises(UnexpectedAnswer, match="class_id"):
        client.labels()


def test_the_url_comes_from_the_argument_then_the_environment_then_the_default(monkeypatch):
    monkeypatch.delenv("CLQ_URL", raising=False)
    with Client() as client:
        assert client.url == "http://127.0.0.1:8000"
    monkeypatch.setenv("CLQ_URL", "https://host.example/prefix/")
    with Client() as client:
        assert client.url == "https://host.example/prefix"
    with Client("http://other:81") as client:
        assert client.url == "http://other:81"


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "",
        "ftp://h",
        "http://",
        "http://h:port",
        "http://h?x=1",
        "http://[",
    ],
)
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="accepted: http"):
        Client(url)


def test_proxy_variables_are_not_read(peer, png, detect, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert detect(peer.url, png, retries=0).model.name == "fake"


def test_one_client_serves_many_threads(peer, png):
    with Client(peer.url) as client, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: client.detect(png), range(24)))
    assert len({result.id for result in results}) == 24


def test_a_call_takes_along_key_priority_and_trace(peer, png, detect, monkeypatch):
    monkeypatch.setenv("CLQ_API_KEY", "from-the-environment")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    detect(peer.url, png, api_key="k-1", priority="bulk", traceparent=trace)
    detect(peer.url, png)
    headers = peer.seen[0].headers
    assert (headers["authorization"], headers["x-priority"]) == ("Bearer k-1", "bulk")
    assert headers["traceparent"] == trace
    assert peer.seen[1].headers["authorization"] == "Bearer from-the-environment"
    assert not {"x-priority", "traceparent"} & set(peer.seen[1].headers)


def test_a_model_and_its_version_are_part_of_the_path(peer, png, detect):
    detect(peer.url, png, model="web ui/1")
    detect(peer.url, png, model="nano", version=2)
    with Client(peer.url, model="nano", version=2) as client:
        assert client.labels()[1].category_id == 1
    assert [seen.path for seen in peer.seen] == [
        "/v1/models/web%20ui%2F1/detect",
        "/v1/models/nano/versions/2/detect",
        "/v1/models/nano/versions/2/labels",
    ]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"api_key": "a\r\nX-Evil: 1"}, "api_key"),
        ({"api_key": ""}, "api_key"),
        ({"version": 1}, "version"),
        ({"model": "a", "version": 0}, "version"),
        ({"model": ""}, "model"),
        ({"priority": "urgent"}, "priority"),
        ({"proxy": "socks5://h"}, "proxy"),
        ({"ca_file": __file__}, "ca_file"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_without_showing_a_key(settings, named):
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match=named) as caught:
            kind("http://h", **settings)
        assert "Evil" not in str(caught.value)


def test_a_key_is_in_no_repr():
    settings = Client("http://h", api_key="secret-key", proxy="http://u:word@p:1")._settings
    assert "secret-key" not in repr(settings)
    assert "word" not in repr(settings)


def test_a_trace_context_that_is_none_is_refused(peer, png, detect):
    with pytest.raises(ValueError, match="traceparent"):
        detect(peer.url, png, traceparent="00-xyz")
    assert peer.seen == []


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that nobody has signed, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path / "own.pem"
    subject = ["-subj", "/CN=own", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout", str(path)]
    command = ["openssl", "req", "-x509", "-days", "2", *key, *subject]
    made = subprocess.run(command, capture_output=True, check=True)
    path.write_bytes(path.read_bytes() + made.stdout)
    return path


def test_a_ca_file_is_trusted_and_nothing_else_is(peer, png, detect, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = peer._server
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = peer.url.replace("http:", "https:")
    assert detect(url, png, ca_file=str(certificate)).model.name == "fake"
    with pytest.raises(ConnectionFailed, match="certificate verify failed"):
        detect(url, png, retries=0)


def test_the_real_service_understands_every_setting(service, detect):
    red = np.full((32, 32, 3), (250, 5, 10), np.uint8)
    settings = {"priority": "bulk", "deadline_s": 30.0, "model": "tiny", "version": 1}
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    result = detect(
        service, red, **settings, score=0.1, iou=0.5, max=3, classes=["red"], traceparent=trace
    )
    assert [found.label for found in result.detections] == ["red"]
    with pytest.raises(UnknownModel):
        detect(service, red, model="none", retries=0)
    with Client(service, model="tiny") as client:
        assert [item.category_id for item in client.labels()] == [10, 20, 30]


def test_a_proxy_is_used(peer, png, detect):
    result = detect("http://no-such-host.invalid", png, proxy=peer.url, retries=0)
    assert result.model.name == "fake"
    assert peer.seen[0].headers["host"] == "no-such-host.invalid"


def many_sync(url, images):
    with Client(url, retries=0) as client:
        return client.detect_many(images, concurrency=3)


def many_async(url, images):
    async def call():
        async with AsyncClient(url, retries=0) as client:
            return await client.detect_many(images, concurrency=3)

    return asyncio.run(call())


@pytest.fixture(params=[many_sync, many_async], ids=["sync", "async"])
def detect_many(request):
    return request.param


def test_many_images_come_back_in_order_and_one_that_fails_stops_none(peer, png_of, detect_many):
    images = [png_of(10 * (i + 1), 20, 0) for i in range(6)]
    peer.slow_s[images[0]] = 0.3
    images[2] = b"no image"
    images[4] = "no/such/file.png"
    found = detect_many(peer.url, iter(images))
    assert isinstance(found[2], ImageRefused)
    assert isinstance(found[4], FileNotFoundError)
    assert [found[i].image.width for i in (0, 1, 3, 5)] == [10, 20, 40, 60]
    assert detect_many(peer.url, []) == []


def test_a_mistake_among_many_images_is_raised(peer, png, detect_many):
    with pytest.raises(TypeError, match="int is not an image"):
        detect_many(peer.url, [png, 3])


def test_a_closed_client_says_so_and_its_thread_has_ended(peer, png):
    client = Client(peer.url)
    client.detect(png)
    assert [thread.name for thread in threading.enumerate()].count("clq-client") == 1
    client.close()
    client.close()
    assert "clq-client" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(RuntimeError, match="closed"):
        client.detect(png)


def test_a_client_that_is_forgotten_leaves_no_thread(peer, png):
    Client(peer.url).detect(png)
    gc.collect()
    assert "clq-client" not in [thread.name for thread in threading.enumerate()]


def test_close_ends_a_call_of_another_thread(peer, png):
    peer.answers(delay_s=5.0)
    client = Client(peer.url)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.detect, png)
        until_s = time.monotonic() + 10
        while not peer.seen and time.monotonic() < until_s:
            time.sleep(0.01)
        client.close()
        with pytest.raises(RuntimeError, match="closed during the call"):
            call.result(3)


def test_closing_beside_many_calls_ends_every_one_of_them(peer, png):
    client = Client(peer.url, retries=0)

    def call_until_closed(_):
        while True:
            try:
                client.detect(png)
            except RuntimeError as error:
                return str(error)

    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(call_until_closed, number) for number in range(6)]
        until_s = time.monotonic() + 10
        while len(peer.seen) < 12 and time.monotonic() < until_s:
            time.sleep(0.01)
        client.close()
        assert all("closed" in call.result(10) for call in calls)


def test_a_client_works_on_both_sides_of_a_fork(peer, png, tmp_path):
    code = (
        "import os, sys\n"
        "from clq_client import Client\n"
        "client = Client(sys.argv[1])\n"
        "assert client.detect(sys.argv[2]).image.width == 400\n"
        "child = os.fork()\n"
        "assert client.detect(sys.argv[2]).image.width == 400\n"
        "if child: assert os.waitpid(child, 0)[1] == 0\n"
    )
    path = tmp_path / "a.png"
    path.write_bytes(png)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, peer.url, str(path)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(peer.detects) == 3
