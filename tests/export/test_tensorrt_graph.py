"""What TensorRT is given computes what the bundle computes: run by ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from clq_export.dcn_forms import with_dcn
from clq_export.errors import ExportError
from clq_export.tensorrt_build import ACCEPTED
from clq_export.tensorrt_graph import engine_graph
from clq_serve.bundle import builtin_bundle_path, load_bundle
from clq_serve.candidates import Candidates
from clq_serve.compare import candidate_difference
from clq_serve.golden import GOLDEN_FLOOR, read_golden

BUILTIN = builtin_bundle_path() / "model.onnx"


# From docs/operators.md of onnx-tensorrt for TensorRT 10.15, reduced to our types: F float32, H
# float16, I int64, B bool, U uint8.
TENSORRT_TAKES = {
    **dict.fromkeys(["Add", "Mul", "Sub", "Div", "Mod", "Less", "Greater", "Equal", "Pad"], "FHI"),
    **dict.fromkeys(["Concat", "Expand", "GatherElements", "GatherND", "Gather", "Where"], "FHIB"),
    **dict.fromkeys(["Reshape", "Squeeze", "Unsqueeze", "Slice", "Transpose", "Identity"], "FHIB"),
    **dict.fromkeys(["Conv", "Sigmoid", "Exp", "Log", "Clip", "DeformConv", "TopK"], "FHI"),
    **dict.fromkeys(["Relu", "ReduceMax", "Range", "Split", "Shape", "MaxPool"], "FHI"),
    **dict.fromkeys(["And", "Or", "Not", "Xor"], "B"),
    "Resize": "FHI",
    "Cast": "FHIBU",
}
LETTERS = {1: "F", 10: "H", 7: "I", 9: "B", 2: "U"}


def run(graph: onnx.ModelProto, images: np.ndarray) -> Candidates:
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return Candidates(*session.run(list(Candidates._fields), {"images": images}))


def types_at_the_border(graph: onnx.ModelProto) -> list[int]:
    values = [*graph.graph.input, *graph.graph.output]
    return [value.type.tensor_type.elem_type for value in values]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("plugin", [True, False])
def test_the_built_in_model_for_tensorrt_gives_its_golden_results(precision, plugin):
    graph, count = engine_graph(str(BUILTIN), precision, plugin)
    assert count == (4 if plugin else 0)
    images, expected = read_golden(load_bundle(BUILTIN.parent))[0]
    score, box_px = candidate_difference(run(graph, images), expected, GOLDEN_FLOOR)
    print(f"{precision}, plugin {plugin}: scores within {score:.1e}, boxes within {box_px:.2g} px")
    accepted = ACCEPTED[precision]
    # The rest is left for what another runtime does differently.
    assert score <= accepted.score / 5
    assert box_px <= accepted.box_px / 2
    assert types_at_the_border(graph) == types_at_the_border(onnx.load(BUILTIN))


def test_half_precision_is_between_the_convolutions_and_nowhere_else():
    graph, _ = engine_graph(str(BUILTIN), "fp16", True)
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    kinds |= {one.name: one.data_type for one in inferred.initializer}
    by_operator: dict[str, set[int]] = {}
    for node in inferred.node:
        if node.input and node.op_type != "Cast":
            by_operator.setdefault(node.op_type, set()).add(kinds.get(node.input[0], 0))
    assert by_operator["Conv"] == {TensorProto.FLOAT16}
    assert by_operator["Relu"] == {TensorProto.FLOAT16}
    for operator in ("TopK", "Exp", "Sigmoid", "Log", "GatherElements", "ReduceMax"):
        assert TensorProto.FLOAT16 not in by_operator[operator], operator
    for node in inferred.node:
        if node.op_type == "AlignedConv2d":
            x, w, deltas, b, w_offset = (kinds[name] for name in node.input)
            assert {x, w, b} == {TensorProto.FLOAT16}
            assert {deltas, w_offset} == {TensorProto.FLOAT}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_operator_and_type_is_in_tensorrts_list(precision):
    graph, _ = engine_graph(str(BUILTIN), precision, True)
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds |= {one.name: one.data_type for one in inferred.initializer}
    refused = {
        (node.op_type, LETTERS.get(kinds[name], kinds[name]))
        for node in inferred.node
        for name in node.input
        if node.op_type != "AlignedConv2d"
        and name
        and LETTERS.get(kinds[name], "?") not in TENSORRT_TAKES.get(node.op_type, "")
    }
    assert refused == set()
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in inferred.initializer}
    counts = [int(weights[n.input[1]][0]) for n in inferred.node if n.op_type == "TopK"]
    assert max(counts) <= 3840


def test_only_a_cast_reads_the_pixels():
    graph, _ = engine_graph(str(BUILTIN), "fp32", False)
    readers = [node.op_type for node in graph.graph.node if "images" in node.input]
    assert readers == ["Cast"]


@pytest.mark.parametrize("form", ["standard", "plugin", "taps"])
def test_every_form_of_a_bundle_is_taken(form, tmp_path):
    path = saved(with_dcn(onnx.load(BUILTIN), form), tmp_path)
    graph, count = engine_graph(path, "fp32", True)
    assert count == (0 if form == "taps" else 4)
    operators = [node.op_type for node in graph.graph.node]
    assert operators.count("AlignedConv2d") == count
    images, expected = read_golden(load_bundle(BUILTIN.parent))[0]
    score, box_px = candidate_difference(run(graph, images), expected, GOLDEN_FLOOR)
    assert score <= ACCEPTED["fp32"].score
    assert box_px <= ACCEPTED["fp32"].box_px


def saved(graph: onnx.ModelProto, folder: Path) -> str:
    onnx.save(graph, folder / "model.onnx")
    return str(folder / "model.onnx")


def test_an_8_bit_model_is_refused(tmp_path):
    graph = onnx.load(BUILTIN)
    graph.graph.node.append(helper.make_node("QuantizeLinear", ["a", "b"], ["c"]))
    with pytest.raises(ExportError, match="is an 8-bit model; accepted: a float one"):
        engine_graph(saved(graph, tmp_path), "fp32", True)


def test_a_half_precision_model_is_not_called_fp32_and_is_taken_as_it_is(tmp_path):
    half, _ = engine_graph(str(BUILTIN), "fp16", False)
    path = saved(half, tmp_path)
    with pytest.raises(ExportError, match="holds float16 weights; accepted for it: --precision"):
        engine_graph(path, "fp32", True)
    graph, count = engine_graph(path, "fp16", True)
    assert count == 4
    images, expected = read_golden(load_bundle(BUILTIN.parent))[1]
    score, box_px = candidate_difference(run(graph, images), expected, GOLDEN_FLOOR)
    assert score <= ACCEPTED["fp16"].score
    assert box_px <= ACCEPTED["fp16"].box_px


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_deformable_convolution_without_its_surroundings_is_the_plain_plugin(precision, tmp_path):
    graph = onnx.load(BUILTIN)
    node = next(one for one in graph.graph.node if one.op_type == "DeformConv")
    relu = next(one for one in graph.graph.node if node.output[0] in one.input)
    relu.op_type = "Sigmoid"
    images, _ = read_golden(load_bundle(BUILTIN.parent))[0]
    expected = run(graph, images)
    made, count = engine_graph(saved(graph, tmp_path), precision, True)
    operators = [node.op_type for node in made.graph.node]
    assert (operators.count("DeformConv2d"), operators.count("AlignedConv2d"), count) == (1, 3, 4)
    score, box_px = candidate_difference(run(made, images), expected, GOLDEN_FLOOR)
    assert score <= ACCEPTED[precision].score
    assert box_px <= ACCEPTED[precision].box_px
