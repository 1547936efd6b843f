"""The graph of a bundle as TensorRT is given it: strongly typed, with our plugin in the head.

The result is valid ONNX that ONNX Runtime runs too, because the body of each plugin node is there
as a function of the model.  So everything that is done here is tested without TensorRT.
"""

from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper, parser

from clq_export.dcn_forms import DOMAIN, PLUGIN, with_dcn
from clq_export.errors import ExportError

Precision = Literal["fp32", "fp16"]
ALIGNED = "AlignedConv2d"

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
# What may be computed in float16 between two convolutions.
_HALF_OPERATORS = {
    *("Conv", "Relu", "Add", "Mul", "Sigmoid", "Clip", "Concat", "Resize", "MaxPool"),
    *("AveragePool", "GlobalAveragePool", "BatchNormalization"),
}
# Inputs that do not become float16: regions, scales and sizes; deltas and their 1x1; offsets.
_FLOAT_INPUTS = {"Resize": (1, 2, 3), ALIGNED: (2, 4), "DeformConv": (2,), PLUGIN: (2,)}


def engine_graph(path: str, precision: Precision, plugin: bool) -> tuple[onnx.ModelProto, int]:
    """(The graph in the file `path` for TensorRT, the number of nodes that are our plugin).

    precision  fp16: everything between the first convolution and the last ones of the head; the
               input, the offsets, scores, boxes and TopK stay float32, and so do the outputs
    plugin     DeformConv and what surrounds it becomes clq::AlignedConv2d; without it TensorRT's
               own plugin runs DeformConv, in float32

    Raises ExportError if the bundle is of another precision.
    """
    graph = inliner.inline_local_functions(onnx.load(path))
    _check_precision(graph, precision, path)
    del graph.graph.value_info[:]
    _cast_first(graph)
    _fold_norms(graph)
    _compare_no_booleans(graph)
    count = _use_plugin(graph) if plugin else 0
    if precision == "fp16" and not _has_half(graph):
        _to_half(graph)
    onnx.checker.check_model(graph, full_check=True)
    return graph, count


def _check_precision(graph: onnx.ModelProto, precision: Precision, path: str) -> None:
    if any(node.op_type == "QuantizeLinear" for node in graph.graph.node):
        raise ExportError(
            f"{path}: is an 8-bit model; accepted: a float one. The service runs this one on the "
            "device tensorrt:N"
        )
    if precision == "fp32" and _has_half(graph):
        raise ExportError(f"{path}: holds float16 weights; accepted for it: --precision fp16")


def _has_half(graph: onnx.ModelProto) -> bool:
    return any(one.data_type == TensorProto.FLOAT16 for one in graph.graph.initializer)


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


def _fold_norms(model: onnx.ModelProto) -> None:
    """Puts each BatchNormalization into the convolution before it.

    TensorRT does that too, but float16 does not hold the variances: the built-in model's reach
    674 000.  A convolution that levels share, each with its own statistics, becomes several.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    weights = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = makers[norm.input[0]]
        readers = [node for node in graph.node if norm.input[0] in node.input]
        if conv.op_type != "Conv" or len(readers) != 1:
            continue
        scale, shift, mean, variance = (weights[name].astype(np.float64) for name in norm.input[1:])
        factor = scale / np.sqrt(variance + _epsilon(norm))
        weight = weights[conv.input[1]] * factor[:, None, None, None]
        bias = (weights[conv.input[2]] if len(conv.input) == 3 else 0) * factor
        bias = bias + shift - mean * factor
        names = [f"{norm.output[0]}_weight", f"{norm.output[0]}_bias"]
        for name, array in zip(names, (weight, bias), strict=True):
            kind = weights[conv.input[1]].dtype
            graph.initializer.append(numpy_helper.from_array(array.astype(kind), name))
        conv.input[:] = [conv.input[0], *names]
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    _drop_unused_weights(graph)


def _epsilon(norm: onnx.NodeProto) -> float:
    return next((one.f for one in norm.attribute if one.name == "epsilon"), 1e-5)


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
    _drop_unused_weights(graph)
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


def _drop_unused_weights(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _to_half(model: onnx.ModelProto) -> None:
    """Computes in float16 what lies between two convolutions, with Casts at the borders."""
    graph = model.graph
    half_nodes = _half_nodes(model)
    weights = {one.name: one for one in graph.initializer}
    half_of: dict[str, str] = {}  # float32 tensor -> the same in float16
    float_of: dict[str, str] = {}  # float16 tensor -> the same in float32
    produced: set[str] = set()  # tensors that are float16 now
    nodes: list[onnx.NodeProto] = []

    def cast(name: str, known: dict[str, str], to: int) -> str:
        if name not in known:
            known[name] = f"{name}_as_{TensorProto.DataType.Name(to).lower()}"
            nodes.append(helper.make_node("Cast", [name], [known[name]], known[name], to=to))
        return known[name]

    def half_weight(name: str) -> str:
        if name not in half_of:
            half_of[name] = f"{name}_half"
            array = numpy_helper.to_array(weights[name]).astype(np.float16)
            graph.initializer.append(numpy_helper.from_array(array, half_of[name]))
        return half_of[name]

    for index, original in enumerate(graph.node):
        node = onnx.NodeProto()
        node.CopyFrom(original)  # detached: the list of the graph is emptied below
        half = index in half_nodes
        for at, name in enumerate(node.input):
            if half and name and at not in _FLOAT_INPUTS.get(node.op_type, ()):
                if name in weights:
                    node.input[at] = half_weight(name)
                elif name not in produced:
                    node.input[at] = cast(name, half_of, TensorProto.FLOAT16)
            elif name in produced:
                node.input[at] = cast(name, float_of, TensorProto.FLOAT)
        nodes.append(node)
        if half:
            produced.update(node.output)
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused_weights(graph)


def _half_nodes(model: onnx.ModelProto) -> set[int]:
    """Indices of the convolutions, and of what lies between two of them.

    That a tensor moves the taps of a deformable convolution does not count: offsets stay float32,
    and so do the 1x1 convolutions that make them.
    """
    nodes = model.graph.node
    movers = {node.input[2] for node in nodes if node.op_type in ("DeformConv", PLUGIN)}
    convolutions = {
        index
        for index, node in enumerate(nodes)
        if node.op_type in ("Conv", ALIGNED) and not movers & set(node.output)
    }
    below: set[str] = set()  # tensors that depend on a convolution
    after = set()
    for index, node in enumerate(nodes):
        if index in convolutions or below & set(node.input):
            after.add(index)
            below.update(node.output)
    needed: set[str] = set()  # tensors that a convolution depends on
    before = set()
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        if index in convolutions or needed & set(node.output):
            before.add(index)
            skipped = _FLOAT_INPUTS.get(node.op_type, ())
            needed.update(name for at, name in enumerate(node.input) if at not in skipped)
    floats = _float_tensors(model)
    return {
        index
        for index in after & before
        if index in convolutions
        or (nodes[index].op_type in _HALF_OPERATORS and floats.issuperset(nodes[index].output))
    }


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model)
    return {
        value.name
        for value in inferred.graph.value_info
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
