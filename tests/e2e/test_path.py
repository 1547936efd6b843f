"""The whole path once through: train, export, serve (a real uvicorn), call; nothing is faked."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from clq_client import Client
from clq_serve.bundle import load_bundle
from clq_serve.detector import DetectOptions, Detector
from clq_serve.nms import ClassNms
from clq_serve.preprocess import ImageLimits, decode_image
from clq_train.checkpoint import load_model
from clq_train.evaluate import TorchEngine

MAX_BOX_PX, MAX_SCORE = 0.5, 1e-3
SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def service_url(bundle_folder):
    """`clq-serve run` on the bundle, as a process of its own; stopped by SIGTERM at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [SCRIPTS / "clq-serve", "run", "--port", str(port), "--bundle", str(bundle_folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def wait_until_ready(url, process):
    for _ in range(300):
        assert process.poll() is None, process.stdout.read()
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the service was not ready within 30 s")


@pytest.fixture(scope="module")
def by_torch(checkpoint, bundle_folder):
    """Detections of an image file by the checkpoint in torch."""
    manifest = load_bundle(bundle_folder).manifest
    rule = manifest.input.rule
    detector = Detector(TorchEngine(load_model(checkpoint)[0]), ClassNms(), rule)

    def detect(path, score):
        image = decode_image(path.read_bytes(), ImageLimits(), rule.background)
        options = DetectOptions(score, manifest.thresholds.iou, manifest.thresholds.max)
        ((found,), _) = detector.detect([image], options)
        return manifest.class_names, found

    return detect


def assert_same(answer, names, expected):
    """Each detection of either side has its partner on the other."""
    assert len(answer) == len(expected.scores) > 0
    free = list(range(len(answer)))
    for box, label, score in zip(expected.boxes, expected.labels, expected.scores, strict=True):
        partner = min(
            (i for i in free if answer[i]["label"] == names[label]),
            key=lambda i, box=box: np.abs(np.array(answer[i]["box"]) - box).max(),
        )
        free.remove(partner)
        assert np.abs(np.array(answer[partner]["box"]) - box).max() <= MAX_BOX_PX
        assert abs(answer[partner]["score"] - score) <= MAX_SCORE


@pytest.mark.parametrize("number", range(4))
def test_curl_gets_the_boxes_that_torch_gives(service_url, shapes_folder, by_torch, number):
    path = shapes_folder / "images" / f"{number}.png"
    names, expected = by_torch(path, 0.02)
    command = ["curl", "-sS", "-F", f"image=@{path}", f"{service_url}/v1/detect?score=0.02"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert_same(json.loads(out)["detections"], names, expected)


def test_the_library_gets_the_same(service_url, shapes_folder, by_torch):
    path = shapes_folder / "images/0.png"
    names, expected = by_torch(path, 0.02)
    with Client(service_url) as client:
        result = client.detect(path, score=0.02)
        assert [entry.label for entry in client.labels()] == ["red", "blue"]
    assert_same(result.to_dict()["detections"], names, expected)


def test_the_command_line_detects_a_folder_and_draws_it(service_url, shapes_folder, tmp_path):
    out, drawn = tmp_path / "results.jsonl", tmp_path / "drawn"
    command = [SCRIPTS / "clq-client", "detect", shapes_folder / "images", "--url", service_url]
    command += ["--score", "0.02", "--out", out, "--annotate", drawn]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(line["path"]).name for line in lines] == [f"{i}.png" for i in range(4)]
    assert all(line["ok"] and line["detections"] for line in lines)
    assert sorted(os.listdir(drawn)) == [f"{i}.png" for i in range(4)]


def test_the_ap_of_the_bundle_is_the_one_that_its_manifest_says(
    bundle_folder, checkpoint, shapes_folder
):
    (metric,) = load_bundle(bundle_folder).manifest.metrics
    command = [SCRIPTS / "clq-train", "eval", bundle_folder, "--json", "--split", "val"]
    command += ["--config", checkpoint / "config.yaml", f"data.root={shapes_folder}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["images"] == metric.images == 4
    assert measured["ap"] == pytest.approx(metric.AP, abs=1e-3)
    assert measured["ap50"] == pytest.approx(metric.AP50, abs=1e-3)
