"""Kernels stored in float16: exactly the rounded ones, computed in float32, at no cost in a run."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from clq_export.cli import app
from clq_export.dcn_forms import with_dcn
from clq_export.errors import ExportError
from clq_export.stored import store_float16
from clq_export.tensorrt_graph import engine_graph
from clq_serve.bundle import load_bundle
from clq_serve.candidates import Candidates
from clq_serve.compare import candidate_difference
from clq_serve.engine import OnnxEngine
from clq_serve.golden import check_golden, read_golden
from clq_train.checkpoint import load_model
from clq_train.evaluate import TorchEngine
from clq_train.import_bundle import read_bundle
from clq_train.stored_kernels import as_float32


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def kernels_by_name(*sizes):
    """Random float32 kernels (M, 8, 3, 3), one for each M, with zeros and subnormals of float16."""
    rng = np.random.default_rng(0)
    found = {}
    for number, size in enumerate(sizes):
        kernel = rng.normal(size=(size, 8, 3, 3)).astype(np.float32)
        kernel[0, 0] = [[0, -0.0, 1e-7], [-3e-8, 1e-9, 65504], [6e-5, 1e-40, -65519]]
        found[f"kernel{number}"] = kernel
    return found


def chain(kernels):
    """Each kernel (M, 8, 3, 3) convolves the same image; the outputs are added up by channel."""
    nodes = [
        helper.make_node("Conv", ["x", name], [f"y{name}"], f"conv_{name}", pads=[1, 1, 1, 1])
        for name in kernels
    ]
    values = [numpy_helper.from_array(kernel, name) for name, kernel in kernels.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 9, 7])],
        [
            helper.make_tensor_value_info(f"y{name}", TensorProto.FLOAT, [1, len(kernel), 9, 7])
            for name, kernel in kernels.items()
        ],
        values,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def results(model, optimised=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    image = np.random.default_rng(1).normal(size=(1, 8, 9, 7)).astype(np.float32)
    return session.run(None, {"x": image})


def test_kernels_are_stored_rounded_and_computed_in_float32(tmp_path):
    kernels = kernels_by_name(16, 13)  # 1152 and 936 numbers
    model = chain(kernels)
    factors = store_float16(model)
    onnx.checker.check_model(model, full_check=True)
    rounded = kernels | {"kernel0": kernels["kernel0"].astype(np.float16).astype(np.float32)}

    assert list(factors) == ["kernel0"]  # the other is small
    product = (kernels["kernel0"] * factors["kernel0"]).astype(np.float32)
    np.testing.assert_array_equal(product, rounded["kernel0"])
    for found, expected in zip(
        results(model, tmp_path / "optimised.onnx"), results(chain(rounded)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    optimised = onnx.load(tmp_path / "optimised.onnx").graph
    assert "Cast" not in [node.op_type for node in optimised.node]
    assert {one.data_type for one in optimised.initializer} == {TensorProto.FLOAT}

    back = as_float32(model).graph
    assert [node.op_type for node in back.node] == ["Conv", "Conv"]
    for one in back.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(one), rounded[one.name])


@pytest.mark.parametrize("value", [65520, -1e6, np.inf, np.nan])
def test_a_number_that_float16_does_not_hold_is_refused_with_the_kernels_name(value):
    kernels = kernels_by_name(16)
    kernels["kernel0"][3, 2, 1, 0] = value
    with pytest.raises(ExportError, match=r"kernel0: holds .*; accepted .* -65504 to 65504"):
        store_float16(chain(kernels))


def test_float16_kernels_of_a_float16_bundle_are_not_asked_for(tmp_path):
    result = run("onnx", tmp_path, "--out", tmp_path, "--precision", "fp16", "--weights", "float16")
    assert isinstance(result.exception, ExportError)
    assert "--weights float16: accepted with --precision fp32" in str(result.exception)


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("stored")
    result = run("onnx", checkpoint, "--out", out, "--weights", "float16", "--evaluate", "val")
    assert result.exit_code == 0, result.output + str(result.exception)
    return load_bundle(out / "shapes" / "1")


def candidates(model, images):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return Candidates(*session.run(list(Candidates._fields), {"images": images}))


def kernels_in(path):
    """Large kernels of the file as float32, and the types that they are stored in."""
    model = onnx.load(path)
    kinds = {one.data_type for one in model.graph.initializer if np.prod(one.dims) >= 1000}
    values = {o.name: numpy_helper.to_array(o) for o in as_float32(model).graph.initializer}
    return {name: v for name, v in values.items() if v.size >= 1000}, kinds


@pytest.mark.slow
def test_an_export_is_the_model_with_rounded_kernels(made, bundle_folder, checkpoint):
    exact, kinds = kernels_in(bundle_folder / "model.onnx")
    assert kinds == {TensorProto.FLOAT}
    stored, kinds = kernels_in(made.model_path)
    assert kinds == {TensorProto.FLOAT16}
    assert len(exact) > 20
    assert "model.head.align.weight" in exact
    assert stored.keys() == exact.keys()
    for name, kernel in exact.items():
        np.testing.assert_array_equal(stored[name], kernel.astype(np.float16), name)
    assert made.model_path.stat().st_size < 0.6 * (bundle_folder / "model.onnx").stat().st_size
    assert made.manifest.created["weights"] == "float16"

    # Its golden outputs are those of torch with these kernels, not of torch with the exact ones.
    engine, torch_engine = OnnxEngine(made, 2), TorchEngine(load_model(checkpoint)[0])
    assert check_golden(engine, made) == 2
    for images, expected in read_golden(made):
        found = engine.run(images)
        np.testing.assert_allclose(found.scores, expected.scores, atol=2e-6)
        assert np.abs(torch_engine.run(images).scores - expected.scores).max() > 1e-5


@pytest.mark.slow
def test_onnx_runtime_runs_the_nodes_that_it_runs_of_a_float32_bundle(
    made, bundle_folder, tmp_path
):
    graphs = []
    for number, path in enumerate((made.model_path, bundle_folder / "model.onnx")):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{number}.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        graphs.append(onnx.load(tmp_path / f"{number}.onnx").graph)
    kinds = [sorted(node.op_type for node in graph.node) for graph in graphs]
    assert kinds[0] == kinds[1]
    assert TensorProto.FLOAT16 not in {one.data_type for one in graphs[0].initializer}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plugin", "taps"])
def test_it_takes_the_other_forms_of_the_deformable_convolution(form, made):
    """The exporter stores the kernels first and brings the graph into its form then."""
    graph = with_dcn(onnx.load(made.model_path), form)
    images, expected = read_golden(made)[0]
    assert candidate_difference(candidates(graph, images), expected, 0.0)[0] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_bundles_of_fewer_bits_are_made_from_it(precision, made, checkpoint, tmp_path):
    config = checkpoint / "config.yaml"
    result = run(precision, made.path, "--config", config, "--out", tmp_path, "--max-ap-drop", 100)
    assert result.exit_code == 0, result.output + str(result.exception)
    bundle = load_bundle(tmp_path / "shapes" / "2")
    assert "weights" not in bundle.manifest.created
    graph = onnx.load(bundle.model_path).graph
    weights = {one.name: one.data_type for one in graph.initializer}
    operator = "DequantizeLinear" if precision == "int8" else "Conv"
    assert sum(node.op_type == operator for node in graph.node) > 30
    # No Cast of a kernel is left.
    assert not [n for n in graph.node if n.op_type == "Cast" and n.input[0] in weights]


@pytest.mark.slow
def test_the_other_steps_take_it(made, bundle_folder, tmp_path):
    graph, count = engine_graph(str(made.model_path), "fp32", True)
    assert count == 4
    images, expected = read_golden(made)[0]
    assert candidate_difference(candidates(graph, images), expected, 0.0)[0] < 1e-4

    for command in (
        ["verify", made.path, "--no-write"],
        ["verify", made.path, "--no-write", "--runtime", "openvino"],
        ["end2end", made.path, tmp_path / "whole.onnx"],
        ["triton-repo", made.path, tmp_path / "triton"],
    ):
        result = run(*command)
        assert result.exit_code == 0, result.output + str(result.exception)

    inspected = []
    for folder in (made.path, bundle_folder):
        result = run("inspect", folder, "--size", "128x128", "--repeats", 1, "--json")
        assert result.exit_code == 0, result.output + str(result.exception)
        inspected.append(json.loads(result.stdout))
    assert [one["precision"] for one in inspected] == [
        "float32, kernels stored in float16",
        "float32",
    ]
    for part, of_float32 in inspected[1]["parts"].items():
        for key in ("nodes", "parameters", "macs"):
            assert inspected[0]["parts"][part][key] == of_float32[key], (part, key)


@pytest.mark.slow
def test_training_imports_it(made, checkpoint):
    model, _ = load_model(checkpoint)
    exact, _ = kernels_in(made.model_path)
    found = read_bundle(made.path, model).mapped
    for name, kernel in exact.items():
        imported = found[name.removeprefix("model.")][1]
        assert imported.dtype == torch.float32
        np.testing.assert_array_equal(imported, kernel)
