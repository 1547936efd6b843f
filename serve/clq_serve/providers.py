"""ONNX Runtime's execution providers: their options, and proof that the one asked for is in use.

ONNX Runtime falls back to the CPU without an error when a library or the GPU is missing, and
`get_available_providers` tells what it was built with, not what works.  Here that is an error.
"""

import ctypes
import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from clq_serve.bundle import Bundle
from clq_serve.devices import Device, DeviceKind, GpuOptions
from clq_serve.errors import SettingsError

Options = dict[str, str]

_PROVIDERS = {
    DeviceKind.CPU: "CPUExecutionProvider",
    DeviceKind.CUDA: "CUDAExecutionProvider",
    DeviceKind.TENSORRT: "TensorrtExecutionProvider",
}
_CUDA_LIBRARIES = (
    *("libcuda.so.1", "libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13"),
    *("libcurand.so.10", "libcudnn.so.9"),
)
_TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")  # TensorRT 11 does not serve
_LIBRARIES: dict[DeviceKind, tuple[str, ...]] = {
    DeviceKind.CPU: (),
    DeviceKind.CUDA: _CUDA_LIBRARIES,
    DeviceKind.TENSORRT: (*_CUDA_LIBRARIES, *_TENSORRT_LIBRARIES),
}


def providers(device: Device, bundle: Bundle, options: GpuOptions) -> list[tuple[str, Options]]:
    """What a session on `device` is built with, the wanted provider first.

    Raises SettingsError if this ONNX Runtime was built without it.
    """
    wanted = _PROVIDERS[device.kind]
    built_in = onnxruntime.get_available_providers()
    if wanted not in built_in:
        raise SettingsError(
            f"device {device}: the onnxruntime that is imported was built without {wanted}; it has "
            f"{', '.join(built_in)}. {_remedy()}"
        )
    if device.kind is DeviceKind.CPU:
        return [(wanted, {})]
    # Loads the CUDA and cuDNN libraries of the nvidia-* wheels, if they are installed.
    onnxruntime.preload_dlls()
    cuda = (_PROVIDERS[DeviceKind.CUDA], cuda_options(device, options))
    if device.kind is DeviceKind.CUDA:
        return [cuda]
    return [(wanted, tensorrt_options(device, bundle, options)), cuda]


def _remedy() -> str:
    try:
        importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return "Install onnxruntime-gpu in place of onnxruntime: see docs/models.md"
    return (
        "onnxruntime-gpu is installed, but onnxruntime overwrote its files: uninstall both, then "
        "install onnxruntime-gpu alone"
    )


def cuda_options(device: Device, options: GpuOptions) -> Options:
    """Options of the CUDA provider.  HEURISTIC: EXHAUSTIVE would tune anew for every shape."""
    return {
        "device_id": str(device.index),
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": str(int(options.tf32)),
    }


def tensorrt_options(device: Device, bundle: Bundle, options: GpuOptions) -> Options:
    """Options of the TensorRT provider.

    The profile is explicit and takes every padded shape of the input rule: a shape outside of it
    would build another engine while a request waits, for minutes.
    """
    name = bundle.manifest.input.name
    smallest, usual, largest = profile_shapes(bundle, options.max_batch)
    shapes = {"min": smallest, "opt": usual, "max": largest}
    found = {
        f"trt_profile_{which}_shapes": f"{name}:{'x'.join(map(str, shape))}"
        for which, shape in shapes.items()
    }
    found["device_id"] = str(device.index)
    if options.cache is not None:
        folder = _cache_folder(options.cache, bundle)
        folder.mkdir(parents=True, exist_ok=True)
        found |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
        }
    return found


def profile_shapes(bundle: Bundle, max_batch: int) -> tuple[tuple[int, ...], ...]:
    """Smallest, usual and largest (N, H, W, 3) that the input rule and `max_batch` allow."""
    rule = bundle.manifest.input
    multiple = rule.pad.multiple
    longer = math.ceil(rule.resize.longer_px / multiple) * multiple
    shorter = math.ceil(rule.resize.shorter_px / multiple) * multiple
    largest = (max_batch, longer, longer, 3)  # upright and lying images share the profile
    return (1, multiple, multiple, 3), (max_batch, shorter, longer, 3), largest


def check_provider(device: Device, in_use: Sequence[str]) -> str:
    """The provider that a session on `device` uses, which is the wanted one.

    Raises SettingsError if it is another; names both and the first library that is missing.
    """
    wanted, got = _PROVIDERS[device.kind], in_use[0]
    if got == wanted:
        return got
    missing = first_missing(_LIBRARIES[device.kind])
    why = f"cannot load {missing}" if missing else "all its libraries load; is there such a GPU?"
    raise SettingsError(f"device {device}: asked ONNX Runtime for {wanted}, it uses {got}; {why}")


def check_libraries(device: Device) -> None:
    """Nothing, if all libraries that `device` needs are there.  Raises SettingsError."""
    missing = first_missing(_LIBRARIES[device.kind])
    if missing:
        wanted = _PROVIDERS[device.kind]
        raise SettingsError(
            f"device {device}: ONNX Runtime cannot use {wanted}: cannot load {missing}"
        )


def first_missing(libraries: Sequence[str]) -> str:
    """The first library that the loader does not find, with its complaint; "" if none."""
    for name in libraries:
        try:
            ctypes.CDLL(name)
        except OSError as err:
            return f"{name} ({err})"
    return ""


def _cache_folder(cache: Path, bundle: Bundle) -> Path:
    """Engines are good for one model, one ONNX Runtime and one TensorRT; the GPU is in their name.

    getInferLibVersion is one of the few C functions of TensorRT, e.g. 101601 for 10.16.1.
    """
    try:
        version = ctypes.CDLL(_TENSORRT_LIBRARIES[0]).getInferLibVersion()
    except OSError:
        version = 0  # the session is about to fail for the same reason
    digest = bundle.digest.removeprefix("sha256:")[:16]
    return cache / f"onnxruntime-{onnxruntime.__version__}-tensorrt-{version}" / digest
