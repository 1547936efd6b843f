"""clq-export verify: what it compares, what it records, what it refuses."""

import json
import resource
import shutil

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from clq_export import verify as verifying
from clq_export.cli import app
from clq_export.dcn_forms import with_dcn
from clq_export.errors import ExportError, ParityError
from clq_export.runtimes import BARS, bars, open_runtime
from clq_serve.bundle import builtin_bundle_path, describe_file, load_bundle, write_manifest
from clq_serve.errors import BundleError, SettingsError

GPU_RUNTIMES = ("ort-cuda", "ort-tensorrt", "tensorrt")


def verify(bundle, *more):
    return CliRunner().invoke(app, ["verify", str(bundle), *map(str, more)])


@pytest.fixture
def folder(bundle_folder, tmp_path):
    """A copy of the small model's bundle, whose manifest may be written."""
    return shutil.copytree(bundle_folder, tmp_path / "models" / "shapes" / "1")


def change_graph(folder, change):
    """Replaces the model by `change(graph)` and lists it in the manifest."""
    path = folder / "model.onnx"
    onnx.save(change(onnx.load(path)), path)
    manifest = load_manifest(folder)
    files = manifest.files | {"model.onnx": describe_file(path)}
    write_manifest(manifest.model_copy(update={"files": files}), folder)


def load_manifest(folder):
    from clq_serve.bundle import read_manifest

    return read_manifest(folder / "manifest.json")


def test_the_result_is_recorded_and_the_bundle_stays_the_same_bundle(folder):
    before = load_bundle(folder)
    assert before.manifest.parity == ()
    result = verify(folder)
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "golden image" in result.output
    after = load_bundle(folder)
    assert (after.digest, after.fingerprint) == (before.digest, before.fingerprint)
    (entry,) = after.manifest.parity
    assert (entry.runtime, entry.images, entry.labels_changed) == ("ort-cpu", 2, 0)
    assert 0 <= entry.worst_score <= BARS["float32"].score
    assert verify(folder).exit_code == 0  # once more takes the place of the first
    assert len(load_bundle(folder).manifest.parity) == 1


def test_openvino_agrees_on_other_images_and_on_the_ap_of_data(folder, shapes_folder, checkpoint):
    result = verify(
        folder, "--runtime", "openvino", "--images", shapes_folder / "images",
        "--data", checkpoint / "config.yaml",
    )  # fmt: skip
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "standard, run as taps" in result.output
    words = next(line for line in result.output.splitlines() if line.startswith("val: AP")).split()
    assert float(words[2].rstrip(",")) == pytest.approx(float(words[4].rstrip(",")), abs=0.02)
    (entry,) = load_bundle(folder).manifest.parity
    assert (entry.runtime, entry.images) == ("openvino", 2 + 4 + 4)
    assert entry.dcn == "standard, run as taps"


def test_openvino_refuses_the_form_that_it_cannot_run_and_names_the_one_that_it_can(folder):
    change_graph(folder, lambda graph: with_dcn(graph, "plugin"))
    result = verify(folder, "--runtime", "openvino")
    assert isinstance(result.exception, ExportError)
    assert "--dcn taps" in str(result.exception)


def raised_bias(graph):
    for item in graph.graph.initializer:
        if item.name.endswith("head.cls.bias"):
            values = onnx.numpy_helper.to_array(item) + np.float32(0.05)
            item.CopyFrom(onnx.numpy_helper.from_array(values, item.name))
    return graph


def test_a_model_that_is_not_the_golden_one_is_refused_and_nothing_is_recorded(folder):
    change_graph(folder, raised_bias)
    before = (folder / "manifest.json").read_bytes()
    result = verify(folder)
    assert result.exit_code == 1
    assert isinstance(result.exception, ParityError)
    assert "differs from the reference: scores by" in str(result.exception)
    assert "golden image" in str(result.exception)
    assert (folder / "manifest.json").read_bytes() == before


def test_bars_that_are_given_take_the_place_of_the_ones_of_the_precision(folder):
    change_graph(folder, raised_bias)
    wide = ("--max-score", "0.1", "--max-box-px", "5", "--no-write")
    result = verify(folder, *wide)
    assert result.exit_code == 0, result.output + str(result.exception)
    assert load_manifest(folder).parity == ()


@pytest.mark.parametrize(
    ("precision", "key"),
    [(None, "float32"), ("float16", "float16"), ("int8 for onnxruntime", "int8")],
)
def test_the_bars_are_those_of_the_precision_in_the_manifest(bundle_folder, precision, key):
    from dataclasses import replace

    bundle = load_bundle(bundle_folder)
    created = bundle.manifest.created | ({} if precision is None else {"precision": precision})
    manifest = bundle.manifest.model_copy(update={"created": created})
    assert bars(replace(bundle, manifest=manifest)) == BARS[key]


def test_a_flipped_byte_is_refused_and_nothing_is_recorded(folder):
    before = (folder / "manifest.json").read_bytes()
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)
    result = verify(folder)
    assert isinstance(result.exception, BundleError)
    assert "SHA-256" in str(result.exception)
    assert (folder / "manifest.json").read_bytes() == before


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    result = verify(tmp_path)
    assert isinstance(result.exception, BundleError)
    assert "manifest.json: there is no such file" in str(result.exception)


def test_a_full_disk_leaves_the_old_manifest_and_nothing_beside_it(folder):
    bundle = load_bundle(folder)
    opened = open_runtime("ort-cpu", bundle, 0, 1)
    report = verifying.Report()
    verifying.compare_golden_images(opened, bundle, report)
    before = (folder / "manifest.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(ExportError, match="the result cannot be written"):
            verifying.record(bundle, opened, report)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == [
        "golden.npz", "manifest.json", "model.onnx",
    ]  # fmt: skip


def test_a_bundle_that_was_replaced_meanwhile_is_not_written_to(folder):
    bundle = load_bundle(folder)
    opened = open_runtime("ort-cpu", bundle, 0, 1)
    report = verifying.Report()
    verifying.compare_golden_images(opened, bundle, report)
    change_graph(folder, raised_bias)
    with pytest.raises(ExportError, match="was changed while it was verified"):
        verifying.record(bundle, opened, report)
    assert load_manifest(folder).parity == ()


@pytest.mark.parametrize(
    ("files", "message"),
    [({}, "has no image"), ({"a.png": b"text"}, "a.png")],
)
def test_a_folder_of_images_that_cannot_be_compared_is_named(folder, tmp_path, files, message):
    images = tmp_path / "images"
    images.mkdir()
    for name, data in files.items():
        (images / name).write_bytes(data)
    result = verify(folder, "--runtime", "openvino", "--images", images)
    assert isinstance(result.exception, ExportError)
    assert message in str(result.exception)


def test_images_are_refused_where_the_runtime_is_the_reference(folder, tmp_path):
    result = verify(folder, "--images", tmp_path)
    assert isinstance(result.exception, ExportError)
    assert "another --runtime" in str(result.exception)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("runtime", GPU_RUNTIMES)
def test_without_a_gpu_its_runtimes_are_refused_and_never_replaced_by_the_cpu(folder, runtime):
    before = json.loads((folder / "manifest.json").read_text())
    result = verify(folder, "--runtime", runtime)
    assert isinstance(result.exception, SettingsError)
    assert json.loads((folder / "manifest.json").read_text()) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")
@pytest.mark.parametrize("runtime", GPU_RUNTIMES)
def test_on_a_gpu_the_built_in_model_is_the_reference_s(runtime):
    """`tensorrt` needs a plan of it beside: clq-export tensorrt BUNDLE."""
    result = verify(builtin_bundle_path(), "--runtime", runtime, "--no-write")
    assert result.exit_code == 0, result.output + str(result.exception)
