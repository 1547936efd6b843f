"""A stand-in for the CUDA runtime and TensorRT, for machines without a GPU.

It is the boundary that `tensorrt_engine.py` calls, not the engine itself.  Device memory is host
memory that only copies and executions may touch; a stream holds what was enqueued until somebody
waits for it; a capture records instead of enqueuing; a context must have run before it is captured
and must not be changed after that.  The model is the tiny one, computed by `compute`.
"""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

Operation = Callable[[], None]


class FakeCuda:
    """cuda.bindings.runtime: the functions that the engine uses, on one GPU."""

    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(self, real: Any, capability: tuple[int, int] = (9, 0)) -> None:
        self.cudaMemcpyKind = real.cudaMemcpyKind
        self.cudaDeviceAttr = real.cudaDeviceAttr
        self.cudaStreamCaptureMode = real.cudaStreamCaptureMode
        self._errors = real.cudaError_t
        self._capability = capability
        self.device: dict[int, Any] = {}  # address -> buffer
        self.pinned: dict[int, Any] = {}
        self.graphs: set[int] = set()
        self.streams: set[int] = set()
        self._last_stream = 70
        self.launches = 0
        self.fail: str = ""  # name of the function whose next call fails
        self._pending: list[Operation] = []
        self.captured: list[Operation] | None = None
        self._instances: dict[int, list[Operation]] = {}

    def _result(self, name: str, *values: Any) -> tuple[Any, ...]:
        if self.fail == name:
            return (self._errors.cudaErrorUnknown, *(None for _ in values))
        return (self._errors.cudaSuccess, *values)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self._result("cudaGetDeviceCount", 1)

    def cudaDeviceGetAttribute(self, attribute: Any, index: int) -> tuple[Any, ...]:
        assert index == 0
        major = attribute == self.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
        return self._result("cudaDeviceGetAttribute", self._capability[0 if major else 1])

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        assert index == 0
        return self._result("cudaSetDevice")

    def _allocate(self, where: dict[int, Any], count: int) -> int:
        buffer = ctypes.create_string_buffer(b"\xab" * count, count)
        address = ctypes.addressof(buffer)
        where[address] = buffer
        return address

    def cudaMalloc(self, count: int) -> tuple[Any, ...]:
        return self._result("cudaMalloc", self._allocate(self.device, count))

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.device[address]
        return self._result("cudaFree")

    def cudaHostAlloc(self, count: int, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaHostAllocDefault
        return self._result("cudaHostAlloc", self._allocate(self.pinned, count))

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        del self.pinned[address]
        return self._result("cudaFreeHost")

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        self._last_stream += 1
        self.streams.add(self._last_stream)
        return self._result("cudaStreamCreateWithFlags", self._last_stream)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self.streams.remove(stream)
        return self._result("cudaStreamDestroy")

    def enqueue(self, stream: int, operation: Operation) -> None:
        assert stream in self.streams
        (self._pending if self.captured is None else self.captured).append(operation)

    def cudaMemcpyAsync(
        self, target: int, source: int, count: int, kind: Any, stream: int
    ) -> tuple[Any, ...]:
        to_device = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        inside, outside = (target, source) if to_device else (source, target)
        assert count <= len(self.device[inside])
        assert count <= len(self.pinned[outside])
        self.enqueue(stream, lambda: ctypes.memmove(target, source, count))
        return self._result("cudaMemcpyAsync")

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert stream in self.streams
        assert self.captured is None
        for operation in self._pending:
            operation()
        self._pending.clear()
        return self._result("cudaStreamSynchronize")

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert self.captured is None
        self.captured = []
        return self._result("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        assert self.captured is not None
        graph, self.captured = self.captured, None
        return self._result("cudaStreamEndCapture", graph)

    def cudaGraphInstantiate(self, graph: list[Operation], flags: int) -> tuple[Any, ...]:
        assert flags == 0
        handle = len(self._instances) + 1
        self._instances[handle] = graph
        self.graphs.add(handle)
        return self._result("cudaGraphInstantiate", handle)

    def cudaGraphDestroy(self, graph: list[Operation]) -> tuple[Any, ...]:
        return self._result("cudaGraphDestroy")

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        assert graph in self.graphs
        self.launches += 1
        for operation in self._instances[graph]:
            self.enqueue(stream, operation)
        return self._result("cudaGraphLaunch")

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Any, ...]:
        self.graphs.remove(graph)
        return self._result("cudaGraphExecDestroy")


class FakeContext:
    """IExecutionContext."""

    def __init__(self, engine: "FakeEngine") -> None:
        self._engine = engine
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}
        self._scratch = 0
        self._has_run = self._was_captured = False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert not self._was_captured
        return 0 <= index < self._engine.num_optimization_profiles

    def set_device_memory(self, address: int, count: int) -> None:
        assert len(self._engine.cuda.device[address]) >= count
        assert count >= self._engine.device_memory_size_v2
        self._scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self._was_captured, "the graph of this context would not be valid any more"
        self._shape = shape
        return name == "images"

    def infer_shapes(self) -> list[str]:
        return [] if self._shape else ["images"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        tail = (4,) if name == "boxes" else ()
        return (self._shape[0], self._engine.count, *tail)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address in self._engine.cuda.device
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self._engine.cuda
        assert self._scratch
        if cuda.captured is not None:
            if not self._has_run or not self._engine.capturable:
                return False
            self._was_captured = True
        shape, addresses = self._shape, dict(self._addresses)

        def execute() -> None:
            images = _view(cuda.device[addresses["images"]], shape, np.dtype(np.uint8))
            results = self._engine.compute(images)
            for name, result in zip(results._fields, results, strict=True):
                _view(cuda.device[addresses[name]], result.shape, result.dtype)[...] = result

        cuda.enqueue(stream, execute)
        self._has_run = True
        return True


def _view(buffer: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    return np.frombuffer(buffer, dtype, int(np.prod(shape))).reshape(shape)


class FakeEngine:
    """ICudaEngine of the tiny model."""

    device_memory_size_v2 = 1024
    capturable = True

    def __init__(self, cuda: FakeCuda, compute: Callable[..., Any], count: int) -> None:
        self.cuda, self.compute, self.count = cuda, compute, count
        self.num_optimization_profiles = 1
        self.types = {"images": np.uint8, "labels": np.int64} | dict.fromkeys(
            ("boxes", "scores", "cls_scores", "qualities"), np.float32
        )

    @property
    def num_io_tensors(self) -> int:
        return len(self.types)

    def get_tensor_name(self, index: int) -> str:
        return list(self.types)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == "images" else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> type:
        return self.types[name]

    def create_execution_context(self, strategy: str) -> FakeContext:
        assert strategy == "USER_MANAGED"
        return FakeContext(self)


def fake_tensorrt(engine: FakeEngine, version: str = "11.4.0.106") -> Any:
    """The module tensorrt, whose one plan is b"PLAN"."""

    class Logger:
        WARNING = 2

        def __init__(self, level: int) -> None:
            assert level == self.WARNING

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            assert isinstance(logger, Logger)

        def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
            return engine if data == b"PLAN" else None

    return SimpleNamespace(
        __version__=version,
        Logger=Logger,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="USER_MANAGED"),
        init_libnvinfer_plugins=lambda logger, namespace: True,
        nptype=lambda dtype: dtype,
    )
