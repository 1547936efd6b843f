"""Runs a TensorRT plan of a bundle on one GPU, without ONNX Runtime.

tensorrt and cuda-bindings are imported when a plan is opened and are never needed otherwise.

Memory is laid out once, for the largest shape that the plan takes: pinned host memory, device
memory, and one scratch area that all execution contexts share, which is right because one lock and
one stream let them run only one after another.  Each input shape has a context of its own: a CUDA
graph stays valid only while the context that it was captured from is not changed.
"""

import contextlib
import ctypes
import math
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clq_serve.bundle import Bundle
from clq_serve.candidates import Candidates
from clq_serve.devices import Device, GpuOptions
from clq_serve.engine import check_batch, check_finite
from clq_serve.errors import BundleError, EngineError, SettingsError
from clq_serve.golden import Tolerance
from clq_serve.preprocess import Pixels
from clq_serve.tensorrt_plan import Plan, Shape, find_plan

SHAPES_KEPT = 32  # input shapes with a context and a graph; the one not used for longest is dropped


def open_plan(bundle: Bundle, device: Device, gpu: GpuOptions) -> "PlanEngine":
    """The engine of the bundle's plan for the TensorRT and the GPU that are here.

    Raises SettingsError if TensorRT, CUDA or the GPU is not there, BundleError if there is no plan
    for them.
    """
    try:
        import tensorrt as trt
        from cuda.bindings import runtime as cuda
    except ImportError as err:
        raise SettingsError(f"device {device}: {err}; clq-serve[tensorrt] installs it") from err
    plan = find_plan(
        bundle,
        gpu.cache,
        tensorrt=trt.__version__,
        compute_capability=compute_capability(cuda, device),
    )
    return PlanEngine(bundle, plan, device.index, gpu.cuda_graphs, trt, cuda)


def compute_capability(cuda: Any, device: Device) -> str:
    """Of the GPU, e.g. "9.0".  Raises SettingsError if there is none."""
    error, count = cuda.cudaGetDeviceCount()
    if error.value != 0 or device.index >= count:
        raise SettingsError(
            f"device {device}: CUDA finds {count or 0} GPUs ({error.name}); accepted: a number "
            "below that"
        )
    attributes = cuda.cudaDeviceAttr
    major, minor = (
        _ok(cuda.cudaDeviceGetAttribute(attribute, device.index))
        for attribute in (
            attributes.cudaDevAttrComputeCapabilityMajor,
            attributes.cudaDevAttrComputeCapabilityMinor,
        )
    )
    return f"{major}.{minor}"


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One input or output: pinned host memory and device memory for its largest shape."""

    name: str
    dtype: np.dtype[Any]
    item_shape: tuple[int, ...]  # without N; of the input, the largest
    host: NDArray[np.uint8]
    host_address: int
    device_address: int

    def view(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """The start of the host memory as an array of this shape."""
        count = math.prod(shape) * self.dtype.itemsize
        return self.host[:count].view(self.dtype).reshape(shape)


@dataclass(slots=True)
class _Prepared:
    """What one input shape needs; `graph` is captured the second time that the shape is run."""

    context: Any
    graph: Any = None


class PlanEngine:
    """One engine in one GPU; its `run` may be called from several threads, one after another.

    trt, cuda  the modules tensorrt and cuda.bindings.runtime

    Raises BundleError if TensorRT cannot load the plan, or if it has other inputs or outputs than
    the manifest describes.
    """

    def __init__(
        self, bundle: Bundle, plan: Plan, index: int, cuda_graphs: bool, trt: Any, cuda: Any
    ) -> None:
        self.provider = f"TensorRT {trt.__version__}"
        self._spec = bundle.manifest.input
        self._outputs = bundle.manifest.outputs.names
        self.tolerance = Tolerance(plan.info.accepted_score, plan.info.accepted_box_px)
        self._profiles = plan.info.profiles
        self._index, self._cuda_graphs, self._trt, self._cuda = index, cuda_graphs, trt, cuda
        self._lock = threading.Lock()
        self._shapes: OrderedDict[Shape, _Prepared] = OrderedDict()
        self._resources = contextlib.ExitStack()
        weakref.finalize(self, _release, cuda, index, self._shapes, self._resources)

        _ok(cuda.cudaSetDevice(index))
        logger = trt.Logger(trt.Logger.WARNING)
        trt.init_libnvinfer_plugins(logger, "")
        runtime = trt.Runtime(logger)
        self._engine = runtime.deserialize_cuda_engine(plan.data)
        if self._engine is None:
            raise BundleError(f"{plan.path}: TensorRT cannot load it; what it logged says why")
        self._check_tensors(bundle, plan)
        self._stream = _ok(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self._resources.callback(cuda.cudaStreamDestroy, self._stream)
        self._scratch_bytes = max(1, self._engine.device_memory_size_v2)
        self._scratch = self._allocate(self._scratch_bytes)
        largest = tuple(np.max([profile.max for profile in self._profiles], axis=0).tolist())
        self._input = self._tensor(self._spec.name, np.dtype(np.uint8), largest[0], largest[1:])
        count = bundle.manifest.outputs.count
        self._results = [
            self._tensor(name, np.dtype(dtype), largest[0], (count, *tail))
            for name, (dtype, tail) in zip(self._outputs, _OUTPUT_TYPES, strict=True)
        ]

    def run(self, batch: Pixels) -> Candidates:
        """The candidates of a batch of prepared images, as those of OnnxEngine.run.

        Raises EngineError if no profile of the plan takes the shape, or if CUDA fails.
        """
        check_batch(batch, self._spec)
        shape: Shape = batch.shape
        with self._lock:
            _ok(self._cuda.cudaSetDevice(self._index))  # is a property of the calling thread
            known = shape in self._shapes
            prepared = self._prepare(shape)
            np.copyto(self._input.view(shape), batch)
            if known and self._cuda_graphs and prepared.graph is None:
                prepared.graph = self._capture(prepared.context, shape)
            if prepared.graph is None:
                self._enqueue(prepared.context, shape)
            else:
                _ok(self._cuda.cudaGraphLaunch(prepared.graph, self._stream))
            _ok(self._cuda.cudaStreamSynchronize(self._stream))
            arrays = [one.view((shape[0], *one.item_shape)).copy() for one in self._results]
        check_finite(arrays, self._outputs)
        return Candidates(*arrays)

    def _prepare(self, shape: Shape) -> _Prepared:
        """The context for the shape, made and kept if it is new."""
        prepared = self._shapes.get(shape)
        if prepared is not None:
            self._shapes.move_to_end(shape)
            return prepared
        profile = self._profile(shape)
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(f"TensorRT makes no context for {shape}; what it logged says why")
        if profile != 0:
            stream = int(self._stream)
            _true(context.set_optimization_profile_async(profile, stream), f"profile {profile}")
            _ok(self._cuda.cudaStreamSynchronize(self._stream))
        context.set_device_memory(self._scratch, self._scratch_bytes)
        _true(context.set_input_shape(self._input.name, shape), f"input shape {shape}")
        missing = context.infer_shapes()
        if missing:
            raise EngineError(f"TensorRT cannot tell the shapes of {missing} for {shape}")
        for tensor in (self._input, *self._results):
            _true(context.set_tensor_address(tensor.name, tensor.device_address), tensor.name)
        for tensor in self._results:
            found, wanted = tuple(context.get_tensor_shape(tensor.name)), tensor.item_shape
            if found != (shape[0], *wanted):
                raise EngineError(f"output {tensor.name!r} has shape {found} for {shape}")
        if len(self._shapes) >= SHAPES_KEPT:
            _, oldest = self._shapes.popitem(last=False)
            _drop_graph(self._cuda, oldest)
        self._shapes[shape] = prepared = _Prepared(context)
        return prepared

    def _enqueue(self, context: Any, shape: Shape) -> None:
        """Copies in, runs and copies out, all on the stream; returns before any of it is done."""
        cuda, kind = self._cuda, self._cuda.cudaMemcpyKind
        source, count = self._input, math.prod(shape)
        _ok(
            cuda.cudaMemcpyAsync(
                source.device_address,
                source.host_address,
                count,
                kind.cudaMemcpyHostToDevice,
                self._stream,
            )
        )
        _true(context.execute_async_v3(int(self._stream)), f"execution for {shape}")
        for result in self._results:
            count = shape[0] * math.prod(result.item_shape) * result.dtype.itemsize
            _ok(
                cuda.cudaMemcpyAsync(
                    result.host_address,
                    result.device_address,
                    count,
                    kind.cudaMemcpyDeviceToHost,
                    self._stream,
                )
            )

    def _capture(self, context: Any, shape: Shape) -> Any:
        """The same as a CUDA graph, which is launched in one call; the context has run before."""
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _ok(cuda.cudaStreamBeginCapture(self._stream, mode))
        try:
            self._enqueue(context, shape)
        except EngineError as err:
            cuda.cudaStreamEndCapture(self._stream)
            raise EngineError(f"{err}; try the setting cuda_graphs=false") from err
        graph = _ok(cuda.cudaStreamEndCapture(self._stream))
        try:
            return _ok(cuda.cudaGraphInstantiate(graph, 0))
        finally:
            cuda.cudaGraphDestroy(graph)

    def _profile(self, shape: Shape) -> int:
        """Index of the first profile that takes the shape."""
        for index, profile in enumerate(self._profiles):
            bounds = zip(profile.min, shape, profile.max, strict=True)
            if all(low <= side <= high for low, side, high in bounds):
                return index
        ranges = "; ".join(f"{profile.min} to {profile.max}" for profile in self._profiles)
        raise EngineError(f"the plan takes no batch of shape {shape}; accepted: {ranges}")

    def _allocate(self, count: int) -> int:
        """Address of device memory that is freed with the engine."""
        address = _ok(self._cuda.cudaMalloc(count))
        self._resources.callback(self._cuda.cudaFree, address)
        return int(address)

    def _tensor(
        self, name: str, dtype: np.dtype[Any], images: int, item_shape: tuple[int, ...]
    ) -> _Tensor:
        count = images * math.prod(item_shape) * dtype.itemsize
        address = int(_ok(self._cuda.cudaHostAlloc(count, self._cuda.cudaHostAllocDefault)))
        self._resources.callback(self._cuda.cudaFreeHost, address)
        pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_ubyte))
        host = np.ctypeslib.as_array(pointer, (count,))
        return _Tensor(name, dtype, item_shape, host, address, self._allocate(count))

    def _check_tensors(self, bundle: Bundle, plan: Plan) -> None:
        """Names, directions and types of all tensors are those of the manifest."""
        engine, trt = self._engine, self._trt
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {
            name: (
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name,
            )
            for name in names
        }
        wanted = {self._spec.name: (True, "uint8")} | {
            name: (False, np.dtype(dtype).name)
            for name, (dtype, _) in zip(self._outputs, _OUTPUT_TYPES, strict=True)
        }
        if found != wanted:
            raise BundleError(f"{plan.path}: its tensors are {found}; the manifest says {wanted}")
        if engine.num_optimization_profiles != len(self._profiles):
            raise BundleError(
                f"{plan.path}: has {engine.num_optimization_profiles} profiles, its sidecar says "
                f"{len(self._profiles)}"
            )


# Type and shape after (N, K) of the outputs, in the order of Candidates.
_OUTPUT_TYPES: tuple[tuple[type[np.generic], tuple[int, ...]], ...] = (
    (np.float32, (4,)),
    (np.float32, ()),
    (np.int64, ()),
    (np.float32, ()),
    (np.float32, ()),
)


def _release(
    cuda: Any,
    index: int,
    shapes: OrderedDict[Shape, _Prepared],
    resources: contextlib.ExitStack,
) -> None:
    """Frees all memory of an engine; runs when nothing refers to it any more, in any thread."""
    cuda.cudaSetDevice(index)
    for prepared in shapes.values():
        _drop_graph(cuda, prepared)
    shapes.clear()  # the contexts, before the memory that they use
    resources.close()


def _drop_graph(cuda: Any, prepared: _Prepared) -> None:
    if prepared.graph is not None:
        cuda.cudaGraphExecDestroy(prepared.graph)


def _ok(result: tuple[Any, ...]) -> Any:
    """What a CUDA call gives besides its error.  Raises EngineError if that is not success."""
    error, *values = result
    if error.value != 0:
        raise EngineError(f"CUDA: {error.name}")
    return values[0] if values else None


def _true(done: bool, what: str) -> None:
    """TensorRT returns False for a failure and logs the reason."""
    if not done:
        raise EngineError(f"TensorRT refuses {what}; what it logged says why")
