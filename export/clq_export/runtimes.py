"""The runtimes that `clq-export verify` can hold against the reference."""

import platform
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch

from clq_export.choices import VerifyRuntime
from clq_export.openvino_engine import OpenVinoEngine
from clq_serve.bundle import Bundle
from clq_serve.detector import Engine
from clq_serve.devices import Device, DeviceKind, GpuOptions
from clq_serve.engine import OnnxEngine
from clq_serve.golden import EIGHT_BITS, Tolerance
from clq_serve.tensorrt_engine import open_plan

# Largest accepted differences by the precision that a manifest names; float32 is the exporter's own
# bar.
BARS = {
    "float32": Tolerance(1e-4, 0.05),
    "float16": Tolerance(1e-2, 0.5),
    "int8": EIGHT_BITS,
}


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine and what a record of it says.

    dcn       form of the deformable convolution that it runs
    accepted  largest differences from the reference
    """

    engine: Engine
    runtime: VerifyRuntime
    version: str
    device: str
    dcn: str
    accepted: Tolerance


def open_runtime(runtime: VerifyRuntime, bundle: Bundle, gpu: int, threads: int) -> Opened:
    """The bundle's engine in a runtime.

    gpu      number of the GPU, for the runtimes that have one
    threads  for the runtimes on the CPU

    Raises SettingsError if a GPU runtime cannot be used: nothing falls back to the CPU here.
    Raises ExportError for a graph that OpenVINO does not take.
    """
    dcn = bundle.manifest.created.get("dcn", "standard")
    accepted = bars(bundle)
    if runtime == "openvino":
        compiled = OpenVinoEngine(bundle, threads)
        form = f"{dcn}, run as taps" if compiled.converted else dcn
        return Opened(compiled, runtime, compiled.version, cpu_name(), form, accepted)
    if runtime == "tensorrt":
        device = Device(DeviceKind.PLAN, gpu)
        plan = open_plan(bundle, device, GpuOptions())
        version = plan.provider.removeprefix("TensorRT ")
        return Opened(plan, runtime, version, gpu_name(gpu), dcn, plan.tolerance)
    kind = {
        "ort-cpu": DeviceKind.CPU,
        "ort-cuda": DeviceKind.CUDA,
        "ort-tensorrt": DeviceKind.TENSORRT,
    }[runtime]
    engine = OnnxEngine(bundle, threads, device=Device(kind, 0 if kind == DeviceKind.CPU else gpu))
    device_name = cpu_name() if kind == DeviceKind.CPU else gpu_name(gpu)
    return Opened(engine, runtime, onnxruntime.__version__, device_name, dcn, accepted)


def bars(bundle: Bundle) -> Tolerance:
    """What a runtime may differ by for a bundle of this precision."""
    return BARS.get(bundle.manifest.precision.split()[0], BARS["float32"])


def cpu_name() -> str:
    """What the kernel calls the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_name(index: int) -> str:
    """What torch calls the GPU; "GPU N" where torch has no CUDA."""
    if torch.cuda.is_available() and index < torch.cuda.device_count():
        return torch.cuda.get_device_name(index)
    return f"GPU {index}"
