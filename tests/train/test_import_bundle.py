"""A bundle's weights come back as they were served, and what does not fit is said."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from clq_serve.bundle import (
    MODEL_FILE,
    builtin_bundle_path,
    describe_file,
    load_bundle,
    write_manifest,
)
from clq_serve.compare import candidate_difference
from clq_serve.engine import OnnxEngine
from clq_serve.golden import read_golden
from clq_train.checkpoint import load_model, load_state
from clq_train.cli import app
from clq_train.config import load_config
from clq_train.detector import ClqDetector
from clq_train.errors import CheckpointError, ConfigError
from clq_train.evaluate import TorchEngine
from clq_train.import_bundle import read_bundle
from clq_train.import_report import fit_to
from clq_train.init_weights import load_init

CONFIG = Path(__file__).parents[2] / "train/configs/webui_nano.yaml"
BUNDLE = builtin_bundle_path()


def detector(*overrides, classes=14):
    return ClqDetector(load_config(CONFIG, list(overrides)).model, classes)


@pytest.mark.parametrize("name", ["webui_nano", "webui_small"])
def test_a_built_in_model_sees_images_as_its_configuration_says(name):
    config = load_config(CONFIG.with_name(f"{name}.yaml"), [])
    bundle = load_bundle(builtin_bundle_path(config.name))
    assert bundle.manifest.input.rule == config.input_rule
    assert bundle.manifest.class_names == config.data.classes


def test_the_built_in_model_imported_gives_what_the_service_gives(tmp_path):
    out = tmp_path / "start.safetensors"
    command = [
        "import",
        str(BUNDLE),
        "--from",
        "bundle",
        "--config",
        str(CONFIG),
        "--out",
        str(out),
    ]
    text = CliRunner().invoke(app, command, catch_exceptions=False).output
    assert "mapped: 252 of the detector's 300 tensors" in text
    assert "at its start value:\n  num_batches_tracked of 48 batch norms" in text
    assert "left over:\n  nothing" in text

    model = detector()
    load_init(model, out)
    bundle = load_bundle(BUNDLE)
    images = read_golden(bundle)[0].images[:, 64:448, :512]
    served = OnnxEngine(bundle, 1).run(images)
    score, box_px = candidate_difference(TorchEngine(model.eval()).run(images), served, 0.05)
    assert score < 1e-4
    assert box_px < 0.05
    # The same weights as a checkpoint, which the exporter takes; from part of them it makes none.
    command[-2:] = ["--checkpoint", str(tmp_path / "run")]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    stored, config = load_model(tmp_path / "run/step-000000")
    assert config.name == "webui-nano"
    own = stored.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="no state to go on from"):
        load_state(tmp_path / "run/step-000000")
    with pytest.raises(CheckpointError, match=r"would stay\n  backbone"):
        CliRunner().invoke(app, [*command, "--only", "neck,head"], catch_exceptions=False)
    # In training mode, where norms take the batch's statistics, it is the same detector still.
    scores = []
    with torch.inference_mode():
        for training in (False, True):
            cls = model.train(training)(torch.from_numpy(images))[0].cls
            scores.append(cls.sigmoid().amax(-1).flatten())
    assert torch.corrcoef(torch.stack(scores))[0, 1] > 0.9


@pytest.fixture(scope="module")
def foreign():
    return read_bundle(BUNDLE, detector())


def test_classes_that_the_bundle_has_keep_their_weights_by_name(foreign):
    found = fit_to(detector(classes=2), ["text", "button"], foreign, ["head.cls"]).tensors
    assert set(found) == {"head.cls.weight", "head.cls.bias"}
    for name, value in found.items():  # 11 and 0 in the bundle
        assert torch.equal(value, foreign.mapped[name][1][[11, 0]])


def test_other_classes_leave_the_class_layer_over_and_only_is_said(foreign):
    model, classes = detector(classes=3), ["button", "plug", "socket"]
    text = list(fit_to(model, classes, foreign, []).lines(each=False))
    assert "  head.cls: 2 of 2 tensors" in text
    assert "  model.head.cls: 2 tensors: holds no class plug, socket" in text
    text = list(fit_to(model, classes, foreign, ["backbone", "neck"]).lines(each=True))
    assert "  neck.extra.0.bias <- model.neck.extra.0.bias" in text
    assert "  model.head.cls_tower: 34 tensors: not asked for by --only" in text
    with pytest.raises(ConfigError, match=r"--only: the detector has no 'nek'; accepted: backbone"):
        fit_to(model, classes, foreign, ["nek"])


def test_tensors_of_another_shape_are_left_over(foreign):
    classes = load_bundle(BUNDLE).manifest.class_names
    deeper = fit_to(detector("model.head.tower_depth=3"), classes, foreign, [])
    assert "  head.reg_tower: 17 of 51 tensors" in list(deeper.lines(each=False))
    narrow = detector("model.head.channels=32", "model.neck.channels=32")
    text = "\n".join(fit_to(narrow, classes, foreign, []).lines(each=False))
    assert "lateral.0.weight: shape [64, 64, 1, 1], the detector's is [32, 64, 1, 1]" in text
    with pytest.raises(CheckpointError, match=r"no tensor fits the detector:\n  model.backbone"):
        fit_to(narrow, classes, foreign, ["neck.lateral"])


def quantised(proto):
    node = onnx.helper.make_node("DequantizeLinear", ["x", "scale"], ["y"])
    proto.graph.node.append(node)


def halved(proto):
    value = onnx.numpy_helper.from_array(np.zeros(2, np.float16), "some.weight_half")
    proto.graph.initializer.append(value)


@pytest.mark.parametrize("change", [quantised, halved])
def test_a_bundle_of_fewer_bits_is_refused(tmp_path, change):
    folder = tmp_path / BUNDLE.parent.name / BUNDLE.name
    shutil.copytree(BUNDLE, folder)
    proto = onnx.load(folder / MODEL_FILE)
    change(proto)
    onnx.save(proto, folder / MODEL_FILE)
    manifest = load_bundle(BUNDLE).manifest
    files = manifest.files | {MODEL_FILE: describe_file(folder / MODEL_FILE)}
    write_manifest(manifest.model_copy(update={"files": files}), folder)
    with pytest.raises(CheckpointError, match="computes in 8 bits or float16; import the float32"):
        read_bundle(folder, detector())
