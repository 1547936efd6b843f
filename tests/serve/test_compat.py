"""The routes of TorchServe and DeepStack, called as their real clients call them."""

import io
import shutil
import subprocess
from pathlib import Path

import pytest
import requests
from pictures import cells

PATIENCE_S = 60


# --- TorchServe ---------------------------------------------------------------------------------


def assert_torchserve(found: list) -> None:
    """The shape of torchserve's object_detector: one class name and `score` each."""
    assert [list(row) for row in found] == [["red", "score"], ["green", "score"], ["blue", "score"]]
    assert found[1]["green"] == [32, 0, 64, 32]
    assert found[1]["score"] == pytest.approx(200 / 255, abs=1e-5)


@pytest.mark.parametrize("path", ["/predictions/tiny", "/predictions/tiny/1"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_torchserve_takes_the_body_as_it_is(server: str, path: str, method: str) -> None:
    file = io.BytesIO(cells())  # as requests.put(url, data=open(path, "rb")): no content type
    answer = requests.request(method, server + path, data=file, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    assert_torchserve(answer.json())
    assert answer.headers["x-model-digest"].startswith("sha256:")


@pytest.mark.parametrize("field", ["data", "body"])
def test_torchserve_takes_a_form(server: str, field: str) -> None:
    files = {field: ("kitten.jpg", io.BytesIO(cells()))}
    answer = requests.post(f"{server}/predictions/tiny", files=files, timeout=PATIENCE_S)
    assert_torchserve(answer.json())


@pytest.mark.parametrize("upload", [["-T"], ["-X", "POST", "--data-binary"], ["-X", "POST", "-F"]])
def test_torchserve_by_curl(server: str, tmp_path: Path, upload: list[str]) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    (tmp_path / "x.png").write_bytes(cells())
    file = {"-T": "x.png", "--data-binary": "@x.png", "-F": "data=@x.png"}[upload[-1]]
    done = subprocess.run(
        [curl, "-sS", f"{server}/predictions/tiny", *upload, file],
        cwd=tmp_path, capture_output=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    assert_torchserve(requests.models.complexjson.loads(done.stdout))


def test_torchserve_ping_and_errors(server: str) -> None:
    assert requests.get(f"{server}/ping", timeout=PATIENCE_S).json() == {"status": "Healthy"}
    for path, data, status, code in (
        ("/predictions/other", cells(), 404, "unknown_model"),
        ("/predictions/tiny/2", cells(), 404, "unknown_model"),
        ("/predictions/tiny/1.0", cells(), 404, "unknown_model"),
        ("/predictions/tiny", b"", 400, "empty_body"),
        ("/predictions/tiny", b"text", 415, "unsupported_image"),
        ("/predictions/tiny", cells("BMP")[:100], 422, "truncated"),
        ("/predictions/tiny?score=1", cells(), 422, "bad_parameter"),
    ):
        answer = requests.post(server + path, data=data, timeout=PATIENCE_S)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"


# --- DeepStack ----------------------------------------------------------------------------------


def deepstack(server: str, image: object = None, **fields: str) -> requests.Response:
    """As deepstack-python, Home Assistant and the documentation of DeepStack do."""
    files = {"image": cells() if image is None else image}
    url = f"{server}/v1/vision/detection"
    return requests.post(url, files=files, data=fields, timeout=PATIENCE_S)


def test_deepstack_answers_as_its_clients_read_it(server: str) -> None:
    answer = deepstack(server, min_confidence="0.7", api_key="")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["success"] is True
    assert body["duration"] > 0
    assert [p["label"] for p in body["predictions"]] == ["red", "green"]
    assert body["predictions"][1] == {
        "label": "green",
        "confidence": pytest.approx(200 / 255, abs=1e-5),
        "x_min": 32,
        "y_min": 0,
        "x_max": 64,
        "y_max": 32,
    }
    assert all(isinstance(body["predictions"][0][side], int) for side in ("x_min", "y_max"))


def test_deepstack_without_min_confidence_takes_the_threshold_of_the_model(server: str) -> None:
    assert len(deepstack(server).json()["predictions"]) == 3
    named = ("photo.jpg", cells("JPEG", quality=95), "image/jpeg")
    assert len(deepstack(server, named).json()["predictions"]) == 3


@pytest.mark.parametrize(
    ("image", "fields", "status", "code"),
    [
        (b"no image", {}, 415, "unsupported_image"),
        (b"", {}, 400, "empty_body"),
        (None, {"min_confidence": "high"}, 422, "bad_parameter"),
        (None, {"min_confidence": "2"}, 422, "bad_parameter"),
        (None, {"language": "en"}, 400, "unknown_field"),
    ],
)
def test_deepstack_errors_say_so_in_both_languages(
    server: str, image: object, fields: dict[str, str], status: int, code: str
) -> None:
    answer = deepstack(server, image, **fields)
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code)
    assert body["success"] is False
    assert body["error"] == body["detail"]
