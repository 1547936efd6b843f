"""The float16 bundle: what computes in it, what stays float32, and how near it is."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference
from typer.testing import CliRunner

from clq_export.cli import app
from clq_export.errors import ExportError, PrecisionError
from clq_export.half import halve
from clq_export.runtimes import BARS
from clq_serve.bundle import load_bundle
from clq_serve.compare import candidate_difference
from clq_serve.engine import OnnxEngine
from clq_serve.golden import check_golden, read_golden


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def made(bundle_folder, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("float16")
    result = run("fp16", bundle_folder, "--config", checkpoint / "config.yaml", "--out", out)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.stdout, load_bundle(out / "shapes" / "2")


def test_the_output_shows_both_figures_and_the_bundle_is_half_the_size(made, bundle_folder):
    output, bundle = made
    assert [line.split()[0] for line in output.splitlines()[:3]] == ["val", "float32", "float16"]
    assert bundle.manifest.created["precision"] == "float16"
    assert bundle.manifest.created["from"] == load_bundle(bundle_folder).digest
    kinds = {one.data_type for one in onnx.load(bundle.model_path).graph.initializer}
    assert TensorProto.FLOAT16 in kinds


def test_what_goes_in_and_comes_out_is_what_it_was(made, bundle_folder):
    def ends(path):
        graph = onnx.load(path).graph
        return [
            (value.name, value.type.tensor_type.elem_type)
            for value in (*graph.input, *graph.output)
        ]

    assert ends(made[1].model_path) == ends(load_bundle(bundle_folder).model_path)


def test_offsets_sampling_decoding_and_topk_stay_in_float32(made):
    model = shape_inference.infer_shapes(onnx.load(made[1].model_path))
    graph = model.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    kinds |= {one.name: one.data_type for one in graph.initializer}
    counts = {}
    for node in graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
        if node.op_type in ("DeformConv", "TopK", "Exp", "Sigmoid", "Log"):
            assert kinds[node.input[0]] == TensorProto.FLOAT, node.name
    assert counts["DeformConv"] == 4
    assert "BatchNormalization" not in counts  # float16 does not hold the variances


def test_it_is_near_the_float32_bundle_and_reproduces_its_own_golden_outputs(made, bundle_folder):
    engine = OnnxEngine(made[1], 2)
    assert check_golden(engine, made[1]) == 2
    for images, expected in read_golden(load_bundle(bundle_folder)):
        score, box_px = candidate_difference(engine.run(images), expected, 0.05)
        assert score <= BARS["float16"].score
        assert box_px <= BARS["float16"].box_px


@pytest.mark.slow
def test_a_checkpoint_exports_to_float16_at_once(checkpoint, tmp_path):
    out = tmp_path / "out"
    result = run("onnx", checkpoint, "--out", out, "--precision", "fp16", "--max-ap-drop", 100)
    assert result.exit_code == 0, result.output + str(result.exception)
    bundle = load_bundle(out / "shapes" / "1")
    assert bundle.manifest.created["precision"] == "float16"
    assert [p.name for p in out.iterdir()] == ["shapes"]


def test_a_loss_beyond_the_accepted_one_leaves_nothing(
    bundle_folder, checkpoint, tmp_path, monkeypatch
):
    """The figures of a model that lost half of its precision, in place of the measured ones."""
    from dataclasses import replace

    from clq_export import reduced_bundle

    measured = reduced_bundle.measure
    figures = iter([0.5, 0.25])
    monkeypatch.setattr(
        reduced_bundle, "measure", lambda *given: replace(measured(*given), ap=next(figures))
    )
    config = checkpoint / "config.yaml"
    result = run("fp16", bundle_folder, "--config", config, "--out", tmp_path)
    assert isinstance(result.exception, PrecisionError)
    assert str(result.exception).endswith("by 25.00 points; accepted: 0.1")
    assert list(tmp_path.iterdir()) == []


def test_a_float16_bundle_is_not_halved_again(made, checkpoint, tmp_path):
    config = checkpoint / "config.yaml"
    result = run("fp16", made[1].path, "--config", config, "--out", tmp_path)
    assert isinstance(result.exception, ExportError)
    assert "is in float16; accepted: float32" in str(result.exception)


def test_a_graph_without_convolutions_is_refused(tmp_path):
    node = helper.make_node("Add", ["x", "one"], ["y"])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    graph = helper.make_graph([node], "g", value[:1], value[1:], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    onnx.save(model, tmp_path / "in.onnx")
    with pytest.raises(ExportError, match="no convolution that could compute in float16"):
        halve(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
