"""Float16 inside a float32 graph, with islands that stay float32.

In float16 is what lies between the first convolution and the last ones of the head.  In float32
stay the input, where the taps of a deformable convolution go, its sampling (our TensorRT plugin
reads float16 and samples in float32), boxes, scores and TopK; and the outputs.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from clq_export.dcn_forms import ALIGNED, PLUGIN
from clq_export.errors import ExportError
from clq_train.stored_kernels import as_float32

# What may be computed in float16 between two convolutions.
_HALF_OPERATORS = {
    *("Conv", "Relu", "Add", "Mul", "Sigmoid", "Clip", "Concat", "Resize", "MaxPool"),
    *("AveragePool", "GlobalAveragePool", "BatchNormalization"),
}
# Inputs that do not become float16: regions, scales and sizes; deltas and their 1x1; offsets.
_FLOAT_INPUTS = {"Resize": (1, 2, 3), ALIGNED: (2, 4), "DeformConv": (2,), PLUGIN: (2,)}


def halve(source: Path, target: Path) -> int:
    """Writes `target`, the graph `source` in float16; how many convolutions compute in it.

    Raises ExportError for a graph without a convolution that could.
    """
    graph = as_float32(onnx.load(source))
    if graph.functions:  # the form `plugin`: its body is the standard operator
        graph = inliner.inline_local_functions(graph)
    del graph.graph.value_info[:]
    fold_norms(graph)
    to_half(graph)
    weights = {one.name: one.data_type for one in graph.graph.initializer}
    count = sum(
        node.op_type == "Conv" and weights.get(node.input[1]) == TensorProto.FLOAT16
        for node in graph.graph.node
    )
    if not count:
        raise ExportError(f"{source}: has no convolution that could compute in float16")
    onnx.save(graph, target)
    onnx.checker.check_model(target, full_check=True)
    return count


def has_half(graph: onnx.ModelProto) -> bool:
    return any(one.data_type == TensorProto.FLOAT16 for one in graph.graph.initializer)


def to_half(model: onnx.ModelProto) -> None:
    """Computes in float16 what lies between two convolutions, with Casts at the borders.

    The norms are folded before (fold_norms).
    """
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
    drop_unused_weights(graph)


def fold_norms(model: onnx.ModelProto) -> None:
    """Puts each BatchNormalization into the convolution before it.

    Every runtime does that at load, but float16 does not hold the variances: the built-in model's
    reach 674 000.  A convolution that levels share, each with its own statistics, becomes several.
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
    drop_unused_weights(graph)


def _epsilon(norm: onnx.NodeProto) -> float:
    return next((one.f for one in norm.attribute if one.name == "epsilon"), 1e-5)


def drop_unused_weights(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


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
