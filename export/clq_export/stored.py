"""Kernels that a graph stores in float16 and computes in float32: half the file, the same time.

Each is a float16 initializer and a Cast, which ONNX Runtime does once, when it loads the graph.
The Cast's output has the name that the kernel had, so whatever reads the kernel stays as it is;
clq_train.stored_kernels reads them back.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clq_export.errors import ExportError

MIN_NUMBERS = 1000  # smaller kernels, such as that of the offsets, would gain nothing


def store_float16(model: onnx.ModelProto) -> dict[str, NDArray[np.float64]]:
    """What each number of the kernels that are stored in float16 now was multiplied by, by name.

    Kernels are the weights of Conv and DeformConv from MIN_NUMBERS numbers on; `model` is changed.
    Not the norms' statistics: float16 does not hold them, see half.fold_norms.

    Raises ExportError for a kernel with a number that float16 does not hold; one that is too small
    becomes subnormal or 0.
    """
    graph = model.graph
    kernels = {n.input[1] for n in graph.node if n.op_type in ("Conv", "DeformConv")}
    factors = {}
    for one in graph.initializer:
        name, exact = one.name, numpy_helper.to_array(one)
        if name not in kernels or exact.dtype != np.float32 or exact.size < MIN_NUMBERS:
            continue
        with np.errstate(over="ignore"):
            half = exact.astype(np.float16)
        if not np.isfinite(half).all():
            worst = exact[~np.isfinite(half)][0]
            raise ExportError(
                f"{name}: holds {worst:g}; accepted for --weights float16: -65504 to 65504"
            )
        one.CopyFrom(numpy_helper.from_array(half, f"{name}_float16"))
        cast = helper.make_node("Cast", [one.name], [name], f"{name}_cast", to=TensorProto.FLOAT)
        graph.node.insert(0, cast)
        wide = exact.astype(np.float64)
        factors[name] = np.divide(half, wide, out=np.ones_like(wide), where=wide != 0)
    return factors
