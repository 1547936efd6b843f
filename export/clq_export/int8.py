"""A bundle whose convolutions compute in 8 bits, from a bundle that computes in float32.

Explicit Q/DQ nodes, calibrated on images: per channel for weights, per tensor for what flows
between layers.  For ONNX Runtime the weights take 7 of the 8 bits.  In float32 stay the head's last
convolutions (class, box, quality: their values are scores and positions), the offsets and the
deformable convolution itself, decoding and TopK.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from clq_export.choices import Runtime
from clq_export.errors import ExportError
from clq_export.half import drop_unused_weights
from clq_serve.preprocess import Pixels

# ONNX Runtime's CPU kernels are fastest with unsigned activations; TensorRT takes signed symmetric
# ones only, and no quantised bias.
_ACTIVATIONS = {"onnxruntime": QuantType.QUInt8, "tensorrt": QuantType.QInt8}
# A processor without 8-bit dot products adds two products of an unsigned activation and a weight in
# 16 bits, which overflow: under AVX2 alone scores of the built-in model were wrong by 0.6.  Weights
# of 7 bits cannot overflow there, and cost it 0.04 AP on test (docs/log.md).
_SEVEN_BIT_WEIGHTS = {"onnxruntime": True, "tensorrt": False}
# The range of a tensor is the mean over the images of its smallest and largest value: that of the
# one most extreme value coarsens all others (built-in model, 32 images: AP 21.0 in place of 21.5).
_MEAN_RANGE = {"CalibMovingAverage": True}
_EXTRA = {
    "onnxruntime": _MEAN_RANGE | {"ActivationSymmetric": False, "WeightSymmetric": True},
    "tensorrt": _MEAN_RANGE
    | {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "AddQDQPairToWeight": True,
        "QuantizeBias": False,
        "DedicatedQDQPair": True,
    },
}


def quantise(source: Path, target: Path, inputs: Iterable[Pixels], runtime: Runtime) -> int:
    """Writes `target`, the graph `source` with its convolutions in 8 bits; how many they are.

    inputs  prepared images (H, W, 3) to calibrate on, at least one; one is held at a time

    Raises ExportError for a graph without convolutions that could be quantised.
    """
    folded = target.with_name(f".{target.name}.folded.onnx")
    try:
        # Batch normalisation must be in the weights before their scales are chosen.
        _fold(source, folded)
        model = onnx.load(folded)
        graph = model.graph
        _divide_in_weights(graph)
        add_pre_process_metadata(model)  # or every use of the quantiser logs an advice to do it
        onnx.save(model, folded)
        kept = float_convolutions(graph)
        quantised = [n.name for n in graph.node if n.op_type == "Conv" and n.name not in kept]
        if not quantised:
            raise ExportError(f"{source}: has no convolution that could be quantised")
        quantize_static(
            folded,
            target,
            _Reader(graph.input[0].name, inputs),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=_ACTIVATIONS[runtime],
            weight_type=QuantType.QInt8,
            reduce_range=_SEVEN_BIT_WEIGHTS[runtime],
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=sorted(kept),
            extra_options=_EXTRA[runtime],
        )
    finally:
        folded.unlink(missing_ok=True)
    onnx.checker.check_model(target, full_check=True)
    return len(quantised)


def float_convolutions(graph: onnx.GraphProto) -> set[str]:
    """Names of the convolutions that stay in float32.

    Going back from an output, or from the offsets of a deformable convolution, the first
    convolution met is one of them; the walk ends there and at every deformable convolution.
    """
    producer = {output: node for node in graph.node for output in node.output}
    ends = [value.name for value in graph.output]
    ends += [name for node in graph.node if _is_dcn(node) for name in node.input[2:3]]
    ends += [name for node in graph.node if node.op_type == "GridSample" for name in node.input[1:]]
    found: set[str] = set()
    seen: set[str] = set()
    while ends:
        name = ends.pop()
        node = producer.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "Conv":
            found.add(node.name)
            continue
        if not _is_dcn(node) and node.op_type != "Shape":  # a size holds no value of its tensor
            ends += list(node.input)
    return found


def _is_dcn(node: onnx.NodeProto) -> bool:
    return node.op_type in ("DeformConv", "DeformConv2d")


def _fold(source: Path, target: Path) -> None:
    """The graph after ONNX Runtime's basic optimisations, which change no operator's semantics."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _divide_in_weights(graph: onnx.GraphProto) -> None:
    """The pixels' standard deviation goes into the first convolution: one pass less over the image.

    A pass costs 6 % of an 8-bit model's time, and nothing that can be measured of a float32 one's.
    """
    weights = {item.name: item for item in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Div"]:
        readers = [one for one in graph.node if node.output[0] in one.input]
        if node.input[1] not in weights or [one.op_type for one in readers] != ["Conv"]:
            continue
        (conv,) = readers
        std = numpy_helper.to_array(weights[node.input[1]])
        weight = weights[conv.input[1]]
        if std.shape != (weight.dims[1], 1, 1):
            continue
        divided = numpy_helper.to_array(weight) / std
        weight.CopyFrom(numpy_helper.from_array(divided, weight.name))
        conv.input[0] = node.input[0]
        graph.node.remove(node)
    drop_unused_weights(graph)


class _Reader(CalibrationDataReader):
    """Feeds the inputs one by one."""

    def __init__(self, name: str, inputs: Iterable[Pixels]) -> None:
        self._name = name
        self._inputs: Iterator[Pixels] = iter(inputs)

    def get_next(self) -> dict[str, Pixels] | None:
        pixels = next(self._inputs, None)
        return None if pixels is None else {self._name: pixels[None]}
