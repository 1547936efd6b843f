"""The weights of an exported bundle, read back from its ONNX graph.

The graph names its weights as the detector does, with `model.` before them. What export changed is
undone here:

backbone norms   are folded into the convolutions. The mean and the variance that they had are in
                 no graph; those that the bundle's golden images have there take their place. In
                 evaluation mode the detector computes what the bundle does; in training mode, where
                 a norm takes the statistics of the batch, it starts close to it.
head.scales      are lone numbers that multiply the regression of each level
zero biases      are left out
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from clq_serve.bundle import MODEL_FILE, load_bundle, read_listed
from clq_serve.golden import read_golden
from clq_train.detector import ClqDetector
from clq_train.errors import CheckpointError
from clq_train.import_report import Foreign
from clq_train.stored_kernels import as_float32

PREFIX = "model."
CONSTANTS = (f"{PREFIX}mean", f"{PREFIX}std")  # of the pixels; every detector has the same
FOLDED = ".weight_bias"  # ending of a bias that a folded norm left

Named = dict[str, tuple[str, NDArray[np.float32]]]  # detector's name -> name in the graph, value


def read_bundle(folder: Path, model: ClqDetector) -> Foreign:
    """The tensors of the bundle in `folder` for `model`.

    Raises BundleError for a broken bundle, CheckpointError for one that computes in fewer bits.
    """
    bundle = load_bundle(folder)
    proto = as_float32(onnx.load_from_string(read_listed(bundle, MODEL_FILE)))
    if any(node.op_type == "DequantizeLinear" for node in proto.graph.node) or any(
        value.data_type == onnx.TensorProto.FLOAT16 for value in proto.graph.initializer
    ):
        raise CheckpointError(
            f"{folder}: computes in 8 bits or float16; import the float32 bundle it was made from"
        )
    graph = _Graph(proto)
    tensors = {
        name.removeprefix(PREFIX): (name, value)
        for name, value in graph.values.items()
        if name.startswith(PREFIX) and name not in CONSTANTS and not name.endswith(FOLDED)
    }
    tensors |= _biases(graph, model) | _scales(graph)
    tensors |= _norms(graph, model, [example.images for example in read_golden(bundle)])
    used = {source for source, _ in tensors.values()}
    left = {
        name: "the detector has no norm there"
        for name in graph.values
        if name.endswith(FOLDED) and name not in used
    }
    mapped = {name: (source, torch.tensor(value)) for name, (source, value) in tensors.items()}
    return Foreign(mapped, left, bundle.manifest.class_names, [])


class _Graph:
    """Constants by name, convolutions by the name of their weight, and the readers of values."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.values = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
        self.convs: dict[str, list[onnx.NodeProto]] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            if node.op_type == "Conv":
                self.convs.setdefault(node.input[1], []).append(node)
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def factor(self, output: str) -> NDArray[np.float32]:
        """The constant that the next node multiplies `output` by; 1 if there is none."""
        for node in self.readers.get(output, []):
            constants = [self.values[name] for name in node.input if name in self.values]
            if node.op_type == "Mul" and constants:
                return constants[0]
        return np.float32(1)


def _biases(graph: _Graph, model: ClqDetector) -> Named:
    """Of every convolution of the graph that has a bias in the detector."""
    own, found = model.state_dict(), {}
    for weight, nodes in graph.convs.items():
        name = weight.removeprefix(PREFIX).removesuffix(".weight") + ".bias"
        if name in own:
            source = nodes[0].input[2] if len(nodes[0].input) > 2 else "(no bias)"
            found[name] = source, graph.values.get(source, np.zeros(own[name].shape, np.float32))
    return found


def _scales(graph: _Graph) -> Named:
    """The factors of the levels, which are in the graph in the levels' order."""
    nodes = graph.convs.get(f"{PREFIX}head.reg.weight", [])
    factors = np.array([graph.factor(node.output[0]) for node in nodes], np.float32)
    return {"head.scales": ("(factors of the levels)", factors)}


def _norms(graph: _Graph, model: ClqDetector, images: list[NDArray[np.uint8]]) -> Named:
    """The backbone's norms, each from the bias that it became.

    With z the convolution's output without bias, the graph computes z + bias; so does a norm whose
    weight is std(z) and whose bias is bias + mean(z).
    """
    convs = {}
    for name, norm, eps in _norm_after_conv(model):
        nodes = graph.convs.get(f"{PREFIX}{name}.weight")
        if nodes and len(nodes[0].input) > 2:
            convs[nodes[0].output[0]] = nodes[0].input[2], norm, np.float32(eps)
    found: Named = {}
    for output, (mean, variance) in _statistics(graph.proto, list(convs), images).items():
        source, norm, eps = convs[output]
        found |= {
            f"{norm}.weight": (source, np.sqrt(variance + eps)),
            f"{norm}.bias": (source, mean),
            f"{norm}.running_mean": (source, mean - graph.values[source]),
            f"{norm}.running_var": (source, variance),
        }
    return found


def _norm_after_conv(model: ClqDetector) -> list[tuple[str, str, float]]:
    """Each convolution of the backbone, the norm after it, and that norm's epsilon."""
    leaves = [
        (f"backbone.{name}", item)
        for name, item in model.backbone.named_modules()
        if isinstance(item, nn.Conv2d | nn.BatchNorm2d | FrozenBatchNorm2d)
    ]
    return [
        (conv_name, name, item.eps)
        for (conv_name, conv), (name, item) in pairwise(leaves)
        if isinstance(conv, nn.Conv2d) and not isinstance(item, nn.Conv2d)
    ]


def _statistics(
    proto: onnx.ModelProto, outputs: list[str], images: list[NDArray[np.uint8]]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Mean and variance by channel of values (N, C, H, W) of the graph, over all of the images."""
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = []
    for batch in images:
        values = session.run(outputs, {session.get_inputs()[0].name: batch})
        found.append([torch.var_mean(torch.from_numpy(v), (0, 2, 3), correction=0) for v in values])
    # All golden images weigh the same, whatever their size.
    means = [torch.stack([mean for _, mean in column]) for column in zip(*found, strict=True)]
    squares = [torch.stack([v + m**2 for v, m in column]) for column in zip(*found, strict=True)]
    return {
        name: (mean.mean(0).numpy(), (square.mean(0) - mean.mean(0) ** 2).clamp(min=0).numpy())
        for name, mean, square in zip(outputs, means, squares, strict=True)
    }
