"""Runs the model of a bundle with ONNX Runtime, on the CPU or a GPU."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from clq_serve.bundle import MODEL_FILE, Bundle, InputSpec, read_listed
from clq_serve.candidates import Candidates
from clq_serve.devices import CPU, Device, DeviceKind, GpuOptions
from clq_serve.errors import BundleError, EngineError
from clq_serve.golden import tolerance_of
from clq_serve.preprocess import Pixels
from clq_serve.providers import check_libraries, check_provider, providers


class OnnxEngine:
    """One ONNX Runtime session; its `run` may be called from several threads.

    threads   how many threads one `run` may use on the CPU, >= 1; with 1, it is the caller's own
    spinning  whether those threads go on spinning between runs: takes cores from everything else
    device    of any kind but `plan`
    provider  the ONNX Runtime provider in use, which is that of `device`

    Raises BundleError if the graph has other inputs or outputs than the manifest describes,
    SettingsError if the device cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int,
        spinning: bool = False,
        device: Device = CPU,
        gpu: GpuOptions | None = None,
    ) -> None:
        if threads < 1:
            raise EngineError(f"threads is {threads}; accepted: a whole number, 1 or more")
        self.tolerance = tolerance_of(bundle)
        self._spec = bundle.manifest.input
        self._outputs = bundle.manifest.outputs.names
        options = _session_options(threads, spinning, device)
        wanted = providers(device, bundle, gpu or GpuOptions())
        graph = read_listed(bundle, MODEL_FILE)
        try:
            # Otherwise a provider that fails, now or in a run, is silently replaced.
            self._session = onnxruntime.InferenceSession(
                graph, options, providers=wanted, enable_fallback=0
            )
        except Exception as err:  # ONNX Runtime has no public base class for its errors
            check_libraries(device)
            raise BundleError(f"{bundle.model_path}: ONNX Runtime cannot load it: {err}") from err
        self.provider = check_provider(device, self._session.get_providers())
        _check_graph(self._session, bundle)

    def run(self, batch: Pixels) -> Candidates:
        """The candidates of a batch of prepared images.

        batch  (N, H, W, 3) uint8 RGB, N >= 1, H and W multiples of input.pad.multiple

        Raises EngineError if `batch` is something else, or if a result is not a finite number.
        """
        check_batch(batch, self._spec)
        arrays = self._session.run(self._outputs, {self._spec.name: np.ascontiguousarray(batch)})
        check_finite(arrays, self._outputs)
        return Candidates(*arrays)


def _session_options(threads: int, spinning: bool, device: Device) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; they arrive as exceptions as well
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    # One more block of memory for each input shape, and no time gained (benchmarks/memory.py).
    options.enable_mem_pattern = False
    if device.kind is DeviceKind.CPU:
        _share_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
        # The weights do not come from the shared memory, so that they are freed with the session.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options


@functools.cache
def _share_memory() -> None:
    """Lets all sessions of the process take CPU memory from one pool instead of one each: they
    seldom work at the same time, and a model that is loaded anew uses what the old one left.
    """
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # No limit; grow by powers of two (0); the defaults of the rest.
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(0, 0, -1, -1))


def _check_graph(session: onnxruntime.InferenceSession, bundle: Bundle) -> None:
    spec, count = bundle.manifest.input, bundle.manifest.outputs.count
    wanted = dict.fromkeys(bundle.manifest.outputs.names, ("tensor(float)", [None, count]))
    wanted[bundle.manifest.outputs.boxes] = ("tensor(float)", [None, count, 4])
    wanted[bundle.manifest.outputs.labels] = ("tensor(int64)", [None, count])
    _check_nodes(
        "input", session.get_inputs(), {spec.name: ("tensor(uint8)", [None] * 3 + [3])}, bundle
    )
    _check_nodes("output", session.get_outputs(), wanted, bundle)


def _check_nodes(
    side: str,
    nodes: Sequence[onnxruntime.NodeArg],
    wanted: dict[str, tuple[str, list[int | None]]],
    bundle: Bundle,
) -> None:
    """Names, types, ranks and fixed sides; None in a wanted shape is a side of any size."""
    where = f"{bundle.model_path}: {side}"
    names = {node.name for node in nodes}
    if names != set(wanted):
        raise BundleError(f"{where}s are {sorted(names)}; the manifest says {sorted(wanted)}")
    for node in nodes:
        dtype, shape = wanted[node.name]
        if node.type != dtype:
            raise BundleError(f"{where} {node.name!r} is {node.type}; accepted: {dtype}")
        fits = len(node.shape) == len(shape) and all(
            have == want or not isinstance(have, int)
            for have, want in zip(node.shape, shape, strict=True)
        )
        if not fits:
            raise BundleError(
                f"{where} {node.name!r} has shape {node.shape}; accepted: {shape}, None = dynamic"
            )


def check_finite(outputs: Sequence[NDArray[Any]], names: Sequence[str]) -> None:
    """Nothing, if all values of the outputs are finite numbers.  Raises EngineError."""
    for name, array in zip(names, outputs, strict=True):
        if not np.isfinite(array).all():
            raise EngineError(f"output {name!r} of the model has values that are not finite")


def check_batch(batch: Pixels, spec: InputSpec) -> None:
    """Nothing, if `batch` is (N, H, W, 3) uint8 of padded images.  Raises EngineError."""
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3 or 0 in batch.shape:
        raise EngineError(
            f"the batch is {batch.dtype} of shape {batch.shape}; "
            "accepted: uint8 of shape (N, H, W, 3)"
        )
    height, width = batch.shape[1:3]
    if height % spec.pad.multiple or width % spec.pad.multiple:
        raise EngineError(
            f"the batch has images of {width} x {height} pixels; accepted: multiples of "
            f"{spec.pad.multiple}"
        )
