"""MMDetection's ATSS, imported, is the same network, assignment and losses, and can be served.

mmdet, mmcv-lite and mmengine go into a folder of their own, not into the environment of the tests;
benchmarks/mmdet_atss.py runs them there.
"""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from service_process import running
from typer.testing import CliRunner

from clq_export.cli import app as export_app
from clq_train.cli import app as train_app
from clq_train.clq import Objects, Predictions, anchors_for, atss_assign, criterion
from clq_train.config import load_config
from clq_train.detector import ClqDetector
from clq_train.import_mmdet import read_mmdet
from clq_train.import_report import fit_to

ROOT = Path(__file__).parents[2]
CONFIG = load_config(ROOT / "train/configs/atss_r50_1x.yaml", [])

pytestmark = pytest.mark.slow


def clq_train(arguments):
    CliRunner().invoke(train_app, arguments.split(), catch_exceptions=False)


def clq_export(arguments):
    CliRunner().invoke(export_app, arguments.split(), catch_exceptions=False)


def mmdet(*arguments, timeout_s):
    command = [sys.executable, str(ROOT / "benchmarks/mmdet_atss.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, request) -> Path:
    """checkpoint.pth and reference.npz of a randomly initialised ATSS-R50 of MMDetection."""
    packages = Path(request.config.cache.mkdir("mmdet")) / "packages"
    if not packages.is_dir():
        installed = mmdet("install", packages, timeout_s=180)
        if installed.returncode:
            pytest.skip(f"mmdet can't be installed: {installed.stderr.strip().splitlines()[-1]}")
    out = tmp_path_factory.mktemp("mmdet")
    made = mmdet("reference", packages, out, timeout_s=180)
    assert made.returncode == 0, made.stderr
    return out


@pytest.fixture(scope="module")
def reference(folder):
    with np.load(folder / "reference.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def test_the_imported_network_gives_the_same_logits_deltas_and_centerness(folder, reference):
    foreign = read_mmdet(folder / "checkpoint.pth", CONFIG.model.head, None, {})
    assert foreign.notes == ["its pixels are RGB"]
    assert foreign.classes == CONFIG.data.classes
    model = ClqDetector(CONFIG.model, 80).eval()
    imported = fit_to(model, CONFIG.data.classes, foreign, [])
    assert set(imported.tensors) == set(model.state_dict())
    assert all(name.endswith("num_batches_tracked") for name in imported.left)
    model.load_state_dict(imported.tensors)
    with torch.inference_mode():
        found, _ = model(reference["images"])
    for name in Predictions._fields:
        expected = reference[name].squeeze(-1) if name == "quality" else reference[name]
        assert expected.std() > 0.1, "a network that says the same everywhere proves little"
        torch.testing.assert_close(getattr(found, name), expected, rtol=0, atol=1e-4)


def test_it_is_exported_and_served_without_a_training_in_between(folder, tmp_path):
    config, screen = ROOT / "train/configs/atss_r50_1x.yaml", ROOT / "tests/data/screens/docs.png"
    clq_train(
        f"import {folder}/checkpoint.pth --from mmdet --config {config} --checkpoint {tmp_path}/run"
    )
    checkpoint = tmp_path / "run/step-000000"
    # The numbers of the categories are read from COCO's own file; its pictures are not needed.
    annotations = tmp_path / "coco/annotations/instances_train2017.json"
    annotations.parent.mkdir(parents=True)
    names = enumerate(CONFIG.data.classes, 1)
    categories = [{"id": number, "name": name} for number, name in names]
    tree = {"images": [], "annotations": [], "categories": categories}
    annotations.write_text(json.dumps(tree))
    clq_export(f"onnx {checkpoint} data.root={tmp_path}/coco --golden {screen} --out {tmp_path}")
    with running("--bundle", str(tmp_path / "atss-r50-1x/1")) as service:
        query = {"score": 0, "max": 5}
        files = {"image": screen.read_bytes()}
        answer = httpx.post(f"{service.url}/v1/detect", params=query, files=files, timeout=60)
    found = answer.raise_for_status().json()
    assert found["model"]["name"] == "atss-r50-1x"
    assert len(found["detections"]) == 5
    assert {one["label"] for one in found["detections"]} <= set(CONFIG.data.classes)


def test_the_losses_of_the_same_predictions_are_the_same(reference):
    cls, deltas, quality = (reference[name] for name in Predictions._fields)
    anchors = anchors_at(128, 256)
    objects = [Objects(reference[f"boxes_{i}"], reference[f"labels_{i}"]) for i in range(2)]
    predictions = Predictions(cls, deltas, quality.squeeze(-1))
    losses = criterion(predictions, anchors, objects, CONFIG.model.head)
    pairs = {"cls": "loss_cls", "reg": "loss_bbox", "centerness": "loss_centerness"}
    for ours, theirs in pairs.items():
        torch.testing.assert_close(
            losses[ours].double(), reference[theirs].double(), rtol=0, atol=1e-5
        )


def test_300_random_cases_are_assigned_as_mmdetection_does(reference):
    positives = 0
    for case in range(300):
        height, width = reference[f"case_{case}_size"].tolist()
        found = atss_assign(anchors_at(height, width), reference[f"case_{case}_boxes"])
        expected = reference[f"case_{case}_match"]
        assert torch.equal(found, expected), f"case {case}: {(found != expected).sum()} anchors"
        positives += int((expected >= 0).sum())
    assert positives > 5_000


def anchors_at(height, width):
    strides = CONFIG.model.strides
    sizes = [(height // stride, width // stride) for stride in strides]
    return anchors_for(sizes, strides, CONFIG.model.head.anchor_scale, torch.device("cpu"))
