"""Runs the model of a bundle with OpenVINO: a runtime that shares no code with ONNX Runtime.

OpenVINO's ONNX front end has no rule for DeformConv (2026.4.1: "No conversion rule found for
operations: DeformConv-22") nor for our function around it, so only the form `taps` runs.
"""

import io
from typing import Any

import numpy as np
import onnx

from clq_export.dcn_forms import DOMAIN, PLUGIN, with_dcn
from clq_export.errors import ExportError
from clq_serve.bundle import MODEL_FILE, Bundle, read_listed
from clq_serve.candidates import Candidates
from clq_serve.engine import check_batch, check_finite
from clq_serve.preprocess import Pixels


class OpenVinoEngine:
    """One compiled model on the CPU.

    threads    how many threads one `run` uses
    precision  what float32 layers compute in: "f32" or "bf16"
    converted  whether a graph in the form `standard` was brought into the form `taps` for it

    Raises ExportError if OpenVINO is not installed or cannot load the graph.
    """

    def __init__(self, bundle: Bundle, threads: int, precision: str = "f32") -> None:
        try:
            import openvino
        except ImportError as err:
            raise ExportError(f"openvino: {err}; clq-export[openvino] installs it") from err
        self.version = str(openvino.__version__).partition("-")[0]
        self._spec = bundle.manifest.input
        self._outputs = bundle.manifest.outputs.names
        graph = onnx.load_model_from_string(read_listed(bundle, MODEL_FILE))
        self.converted = _as_taps(graph, bundle)
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        if self.converted:
            graph = with_dcn(graph, "taps")
        core = openvino.Core()
        try:
            model = core.read_model(io.BytesIO(graph.SerializeToString()))
            compiled: Any = core.compile_model(model, "CPU", options)
        except RuntimeError as err:
            raise ExportError(f"{bundle.model_path}: OpenVINO cannot load it: {err}") from err
        self._request = compiled.create_infer_request()

    def run(self, batch: Pixels) -> Candidates:
        """The candidates of a batch of prepared images, as those of OnnxEngine.run."""
        check_batch(batch, self._spec)
        self._request.infer({self._spec.name: np.ascontiguousarray(batch)})
        arrays = [self._request.get_tensor(name).data.copy() for name in self._outputs]
        check_finite(arrays, self._outputs)
        return Candidates(*arrays)


def _as_taps(graph: onnx.ModelProto, bundle: Bundle) -> bool:
    """Whether the graph has to be brought into the form `taps`.  Raises ExportError if it can't."""
    kinds = {(node.domain, node.op_type) for node in graph.graph.node}
    if (DOMAIN, PLUGIN) in kinds:
        raise ExportError(
            f"{bundle.model_path}: OpenVINO has no {DOMAIN}::{PLUGIN}; export the checkpoint with "
            "--dcn taps (or standard, which is brought into that form in memory)"
        )
    return ("", "DeformConv") in kinds
