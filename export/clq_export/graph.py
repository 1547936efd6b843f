"""A detector as an ONNX graph."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clq_export.choices import DcnForm, Weights
from clq_export.dcn_forms import with_dcn
from clq_export.stored import store_float16
from clq_train.detector import ClqDetector

OPSET = 22  # DeformConv (19), GroupNormalization (21)
INPUT = "images"
OUTPUTS = ("boxes", "scores", "labels", "cls_scores", "qualities")


class _Traced(nn.Module):
    """What the graph holds: from uint8 pixels to candidates."""

    def __init__(self, model: ClqDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.candidates(images))


def write_graph(
    model: ClqDetector, path: Path, dcn: DcnForm = "standard", weights: Weights = "float32"
) -> None:
    """Writes model.onnx: the detector in evaluation mode, on the CPU, in one file.

    Input `images` uint8 [N, H, W, 3] with dynamic N, H and W (multiples of the largest stride);
    normalisation is inside; `dcn` is the form of the deformable convolution, see dcn_forms; outputs
    OUTPUTS with model.config.candidates entries an image, see clq_serve.candidates.

    weights  float16: kernels are stored in it (stored.py), and `model` gets the rounded ones too,
             so that it stays what the graph is held against

    Raises ExportError for a kernel that float16 does not hold.
    """
    stride = model.config.strides[-1]
    batch = torch.export.Dim("N", min=1, max=1024)
    rows = torch.export.Dim("rows", min=1, max=512)
    cols = torch.export.Dim("cols", min=1, max=512)
    # Unlike sizes, so that the tracer can't take one dimension for another.
    example = torch.zeros(2, 4 * stride, 3 * stride, 3, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            _Traced(model.eval()),
            (example,),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: batch, 1: stride * rows, 2: stride * cols},),
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
        )
    assert program is not None
    graph = tidy(program.model_proto)
    if weights == "float16":
        _multiply(model, store_float16(graph))
    onnx.save(with_dcn(graph, dcn), path)
    onnx.checker.check_model(path, full_check=True)


def _multiply(model: ClqDetector, factors: dict[str, NDArray[np.float64]]) -> None:
    """Multiplies parameters, by their names in the graph, with factors of their shape.

    Factors, because a kernel in the graph is the parameter times what a folded norm made of it.
    """
    with torch.no_grad():
        for name, factor in factors.items():
            parameter = model.get_parameter(name.removeprefix("model."))
            parameter.copy_(parameter.double() * torch.from_numpy(factor))


def tidy(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without the tracer's notes, and with its free dimensions called N, H and W.

    The notes are stack traces with the paths of the exporting machine, on every node; the tracer's
    names of dimensions are expressions such as `64*rows`, which runtimes show to their users.
    """
    inner = graph.graph
    parts = [graph, inner, *inner.node, *inner.value_info, *inner.input, *inner.output]
    for part in [*parts, *inner.initializer]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value, names in [
        (inner.input[0], ("N", "H", "W")),
        *((value, ("N",)) for value in inner.output),
    ]:
        for dimension, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            dimension.dim_param = name
    graph.producer_name = "clq-export"
    return graph


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress and its warnings of its own internals; errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
