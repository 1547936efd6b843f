"""The graph of a bundle as TensorRT is given it: strongly typed, with our plugin in the head.

The result is valid ONNX that ONNX Runtime runs too, because the body of each plugin node is there
as a function of the model.  So everything that is done here is tested without TensorRT.
"""

from typing import Literal

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper, parser

from clq_export.dcn_forms import ALIGNED, DOMAIN, with_dcn
from clq_export.errors import ExportError
from clq_export.half import drop_unused_weights, fold_norms, has_half, to_half
from clq_train.stored_kernels import as_float32

Precision = Literal["fp32", "fp16"]

# DeformConv with its offsets' 1x1 convolution before it and the ReLU after it; w is (9, C, M).
_ALIGNED_FUNCTION = """
<domain: "clq", opset_import: ["" : %d]>
AlignedConv2d <plugin_namespace, plugin_version, aot> (x, w, deltas, b, w_offset) => (y)
{
    spatial = Constant <value_ints = [2, 3]> ()
    w_offset4 = Unsqueeze (w_offset, spatial)
    offset = Conv <kernel_shape = [1, 1]> (deltas, w_offset4)
    square = Constant <value_ints = [0, 0, 3, 3]> ()
    x_f = Cast <to = 1> (x)
    w_f = Cast <to = 1> (w)
    b_f = Cast <to = 1> (b)
    w3 = Transpose <perm = [2, 1, 0]> (w_f)
    w4 = Reshape (w3, square)
    y_f = DeformConv <kernel_shape = [3, 3], strides = [1, 1], pads = [1, 1, 1, 1],
                      dilations = [1, 1], group = 1, offset_group = 1> (x_f, w4, offset, b_f)
    positive = Relu (y_f)
    y = CastLike (positive, x)
}
"""
_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}


def engine_graph(path: str, precision: Precision, plugin: bool) -> tuple[onnx.ModelProto, int]:
    """(The graph in the file `path` for TensorRT, the number of nodes that are our plugin).

    precision  fp16: everything between the first convolution and the last ones of the head; the
               input, the offsets, scores, boxes and TopK stay float32, and so do the outputs
    plugin     DeformConv and what surrounds it becomes clq::AlignedConv2d; without it TensorRT's
               own plugin runs DeformConv, in float32

    Raises ExportError if the bundle is of another precision.
    """
    graph = as_float32(inliner.inline_local_functions(onnx.load(path)))
    _check_precision(graph, precision, path)
    del graph.graph.value_info[:]
    _cast_first(graph)
    fold_norms(graph)
    _compare_no_booleans(graph)
    count = _use_plugin(graph) if plugin else 0
    if precision == "fp16" and not has_half(graph):
        to_half(graph)
    onnx.checker.check_model(graph, full_check=True)
    return graph, count


def _check_precision(graph: onnx.ModelProto, precision: Precision, path: str) -> None:
    if any(node.op_type == "QuantizeLinear" for node in graph.graph.node):
        raise ExportError(
            f"{path}: is an 8-bit model; accepted: a float one. The service runs this one on the "
            "device tensorrt:N"
        )
    if precision == "fp32" and has_half(graph):
        raise ExportError(f"{path}: holds float16 weights; accepted for it: --precision fp16")


def _cast_first(model: onnx.ModelProto) -> None:
    """Lets nothing but a Cast read the uint8 input: TensorRT computes with no uint8."""
    graph, name = model.graph, model.graph.input[0].name
    if {node.op_type for node in graph.node if name in node.input} == {"Cast"}:
        return
    for node in graph.node:
        for index, used in enumerate(node.input):
            if used == name:
                node.input[index] = f"{name}_float"
    cast = helper.make_node("Cast", [name], [f"{name}_float"], f"{name}_float", to=1)
    graph.node.insert(0, cast)


def _compare_no_booleans(model: onnx.ModelProto) -> None:
    """Writes Equal of truth values, which is not in TensorRT's list of operators, as Not Xor."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    boolean = {"Less", "Greater", "Equal", "And", "Or", "Not", "Xor"}
    for index, node in reversed([*enumerate(graph.node)]):
        if node.op_type == "Equal" and any(
            name in makers and makers[name].op_type in boolean for name in node.input
        ):
            result, differ = node.output[0], f"{node.output[0]}_differ"
            node.op_type, node.output[0] = "Xor", differ
            graph.node.insert(index + 1, helper.make_node("Not", [differ], [result]))


def _use_plugin(model: onnx.ModelProto) -> int:
    """The number of DeformConv nodes, all of which are our plugin now.

    AlignedConv2d where the offsets come from a 1x1 convolution of four channels and a ReLU follows,
    else DeformConv2d.
    """
    graph = model.graph
    deformable = [node for node in graph.node if node.op_type == "DeformConv"]
    fused = [node for node in deformable if _fuse(graph, node)]
    kept = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    if len(fused) < len(deformable):
        with_dcn(model, "plugin")
    elif fused:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    if fused:
        opset = next(entry.version for entry in kept if entry.domain == "")
        model.functions.append(parser.parse_function(_ALIGNED_FUNCTION % opset))
    drop_unused_weights(graph)
    return len(deformable)


def _fuse(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """Whether the DeformConv, its 1x1 convolution and its ReLU are one AlignedConv2d now."""
    weights = {one.name: one for one in graph.initializer}
    x, w, offset, *rest = node.input
    small = next((one for one in graph.node if offset in one.output), None)
    after = [one for one in graph.node if node.output[0] in one.input]
    if (
        w not in weights
        or len(rest) != 1
        or [one.op_type for one in after] != ["Relu"]
        or small is None
        or small.op_type != "Conv"
        or len(small.input) != 2
        or small.input[1] not in weights
        or [*weights[small.input[1]].dims] != [18, 4, 1, 1]
    ):
        return False
    for name, change in ((w, _packed), (small.input[1], _flat)):
        if f"{name}_packed" not in weights:  # the levels share their weights
            array = change(numpy_helper.to_array(weights[name]))
            graph.initializer.append(numpy_helper.from_array(array, f"{name}_packed"))
    inputs = [x, f"{w}_packed", small.input[0], rest[0], f"{small.input[1]}_packed"]
    made = helper.make_node(
        ALIGNED, inputs, [after[0].output[0]], node.name, domain=DOMAIN, **_ATTRIBUTES
    )
    where = next(index for index, one in enumerate(graph.node) if one is after[0])
    graph.node.insert(where, made)
    alone = sum(offset in one.input for one in graph.node) == 1
    for old in (node, after[0], *([small] if alone else [])):
        graph.node.remove(old)
    return True


def _packed(weight: np.ndarray) -> np.ndarray:
    """(M, C, 3, 3) as (9, C, M), see dcn_kernel.pack_weight."""
    return np.ascontiguousarray(weight.reshape(*weight.shape[:2], 9).transpose(2, 1, 0))


def _flat(weight: np.ndarray) -> np.ndarray:
    return weight.reshape(18, 4)
