"""Kernels that a bundle's graph stores in float16 and computes in float32, read back as float32.

`clq-export onnx --weights float16` writes them: a float16 initializer and a Cast, whose output has
the kernel's name.
"""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper


def as_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its stored kernels in float32, for what reads kernels; `model` is changed."""
    graph = model.graph
    stored = {o.name: o for o in graph.initializer if o.data_type == TensorProto.FLOAT16}
    for cast in [n for n in graph.node if n.op_type == "Cast" and n.input[0] in stored]:
        kernel = stored[cast.input[0]]
        exact = numpy_helper.to_array(kernel).astype(np.float32)
        kernel.CopyFrom(numpy_helper.from_array(exact, cast.output[0]))
        graph.node.remove(cast)
    return model
