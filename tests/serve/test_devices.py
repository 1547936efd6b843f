"""Which engines run where: the setting `device`, lanes, sharing, and proof of the provider."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from clq_serve.bundle import builtin_bundle_path, load_bundle
from clq_serve.compare import candidate_difference
from clq_serve.configuration import read_settings
from clq_serve.detector import DetectOptions
from clq_serve.devices import CPU, Device, DeviceKind, GpuOptions, parse_devices, placement
from clq_serve.engine import OnnxEngine
from clq_serve.errors import BundleError, EngineError, SettingsError
from clq_serve.loading import load_model
from clq_serve.preprocess import prepare
from clq_serve.providers import (
    check_provider,
    cuda_options,
    first_missing,
    profile_shapes,
    tensorrt_options,
)
from clq_serve.settings import Settings

CUDA = Device(DeviceKind.CUDA)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cpu", (CPU,)),
        ("cuda", (CUDA,)),
        ("cuda:0, cuda:1", (CUDA, Device(DeviceKind.CUDA, 1))),
        ("tensorrt:3", (Device(DeviceKind.TENSORRT, 3),)),
        ("plan:0", (Device(DeviceKind.PLAN),)),
    ],
)
def test_a_list_of_devices_is_read(text: str, found: tuple[Device, ...]) -> None:
    assert parse_devices(text) == found
    assert parse_devices(",".join(map(str, found))) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a device; accepted: cpu, or cuda:N"),
        ("gpu:0", "'gpu:0' is not a device"),
        ("cpu:0", "'cpu:0' is not a device"),
        ("cuda:-1", "'cuda:-1' is not a device"),
        ("cuda:0,", "'' is not a device"),
        ("cuda:1,cuda:1", "cuda:1 is given twice"),
        ("cpu,cuda:0", "cpu and cuda are mixed"),
    ],
)
def test_another_device_is_refused_by_the_settings(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"CLQ_SERVE_DEVICE.*{message}"):
        read_settings({"CLQ_SERVE_DEVICE": text}, {})


@pytest.mark.parametrize(
    ("settings", "lanes", "wide", "shown"),
    [
        ({"threads": 1}, [("cpu", 1)], None, "cpu: 1 lane of 1 thread"),
        (
            {"threads": 4},
            [("cpu", 1)] * 4,
            4,
            "cpu: 4 lanes of 1 thread, 1 of 4 for a lone image",
        ),
        ({"threads": 4, "wide_session": False}, [("cpu", 1)] * 4, None, "cpu: 4 lanes of 1 thread"),
        ({"threads": 4, "sessions_per_device": 1}, [("cpu", 4)], None, "cpu: 1 lane of 4 threads"),
        (
            {"threads": 5, "sessions_per_device": 2},
            [("cpu", 2)] * 2,
            5,
            "cpu: 2 lanes of 2 threads, 1 of 5 for a lone image",
        ),
        (
            {"threads": 4, "device": "cuda:0,cuda:1", "sessions_per_device": 2},
            [("cuda:0", 1), ("cuda:1", 1)] * 2,
            None,
            "cuda:0, cuda:1: 4 lanes of 1 thread",
        ),
        (
            {"threads": 2, "device": "plan:0"},
            [("plan:0", 2)],
            None,
            "plan:0: 1 lane of 2 threads",
        ),
    ],
)
def test_lanes_follow_from_devices_sessions_and_cores(
    settings: dict[str, object], lanes: list[tuple[str, int]], wide: int | None, shown: str
) -> None:
    found = Settings.model_validate(settings)
    assert [(str(place.device), place.threads) for place in found.lane_places] == lanes
    assert (None if found.wide_place is None else found.wide_place.threads) == wide
    assert placement(found.lane_places, found.wide_place) == shown
    assert found.policy.lanes == len(lanes)
    assert found.largest_batch == (1 if lanes[0][0] == "cpu" else 8)


def test_lanes_of_one_thread_share_an_engine_and_others_do_not(tiny_bundle: Path) -> None:
    shared = load_model(Settings(threads=3), tiny_bundle)
    assert len(shared.lanes) == 3
    assert len({id(lane._engine) for lane in shared.lanes}) == 1
    assert shared.wide is not None
    assert shared.wide._engine is not shared.lanes[0]._engine
    apart = load_model(Settings(threads=4, sessions_per_device=2), tiny_bundle)
    assert len({id(lane._engine) for lane in apart.lanes}) == 2


def test_a_rebuilt_lane_has_an_engine_of_its_own_that_gives_the_same(tiny_bundle: Path) -> None:
    model = load_model(Settings(threads=2), tiny_bundle)
    batch = np.random.default_rng(0).integers(0, 256, (1, 64, 128, 3), dtype=np.uint8)
    before = (*model.lanes, model.wide)
    expected = model.lanes[1]._engine.run(batch)
    model.rebuild_lane(1)
    model.rebuild_lane(None)
    assert model.lanes[0] is before[0]
    assert model.lanes[1]._engine is not before[1]._engine
    assert model.wide is not before[2]
    for a, b in zip(expected, model.lanes[1]._engine.run(batch), strict=True):
        assert np.array_equal(a, b)


def test_a_lane_is_not_rebuilt_from_files_that_changed(bundle_copy: Path) -> None:
    model = load_model(Settings(threads=1), bundle_copy)
    lane = model.lanes[0]
    (bundle_copy / "model.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"model\.onnx: was changed while the bundle was in use"):
        model.rebuild_lane(0)
    assert model.lanes[0] is lane
    with pytest.raises(EngineError, match="there is no wide engine"):
        model.rebuild_lane(None)


def test_the_shapes_that_images_had_are_warmed_up_in_the_next_model(tiny_bundle: Path) -> None:
    model = load_model(Settings(threads=1), tiny_bundle)
    detector = model.lanes[0]
    assert model.seen_shapes() == []
    options = DetectOptions(0.3, 0.6, 10)
    for height, width in ((40, 50), (40, 60), (100, 40)):
        detector.detect([np.zeros((height, width, 3), np.uint8)], options)
    assert model.seen_shapes() == [(64, 64), (128, 64)]
    load_model(Settings(threads=1), tiny_bundle, [(64, 64), (128, 64), (63, 64)])


def test_this_onnxruntime_without_the_provider_is_refused(tiny_bundle: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    for device in ("cuda:0", "tensorrt:0"):
        with pytest.raises(SettingsError, match=f"device {device}: .* built without .*Execution"):
            load_model(Settings(device=device), tiny_bundle)


def test_another_provider_than_the_wanted_one_is_refused_with_both_names() -> None:
    assert check_provider(CPU, ["CPUExecutionProvider"]) == "CPUExecutionProvider"
    with pytest.raises(SettingsError) as caught:
        check_provider(CUDA, ["CPUExecutionProvider"])
    assert str(caught.value).startswith(
        "device cuda:0: asked ONNX Runtime for CUDAExecutionProvider, it uses CPUExecutionProvider;"
    )


def test_the_first_missing_library_is_named() -> None:
    assert first_missing(["libc.so.6", "libm.so.6"]) == ""
    missing = first_missing(["libc.so.6", "libclq-nothing.so.1", "libclq-more.so.1"])
    assert missing.startswith("libclq-nothing.so.1 (libclq-nothing.so.1: cannot open shared object")
    with pytest.raises(OSError, match="cannot open"):
        ctypes.CDLL("libclq-nothing.so.1")


def test_the_tensorrt_profile_takes_every_padded_shape_of_the_rule(tmp_path: Path) -> None:
    bundle = load_bundle(builtin_bundle_path())
    rule = bundle.manifest.input.rule
    smallest, usual, largest = profile_shapes(bundle, 4)
    for width, height in ((1, 1), (5000, 10), (10, 5000), (1920, 1080), (1080, 1920), (999, 998)):
        pixels, _ = prepare(np.zeros((height, width, 3), np.uint8), rule)
        for side, low, high in zip(pixels.shape, smallest[1:], largest[1:], strict=True):
            assert low <= side <= high
    assert all(a <= b <= c for a, b, c in zip(smallest, usual, largest, strict=True))
    options = tensorrt_options(CUDA, bundle, GpuOptions(max_batch=4, cache=tmp_path))
    name = bundle.manifest.input.name
    assert options["trt_profile_max_shapes"] == f"{name}:{'x'.join(map(str, largest))}"
    assert bundle.digest[7:23] in options["trt_engine_cache_path"]
    assert Path(options["trt_engine_cache_path"]).is_dir()
    assert cuda_options(CUDA, GpuOptions()) == {
        "device_id": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cuda:0", "tensorrt:0"])
def test_the_real_gpu_package_without_a_gpu_is_refused_and_never_falls_back(device: str) -> None:
    """Needs onnxruntime-gpu in a folder: pip install --no-deps --target FOLDER onnxruntime-gpu."""
    folder = os.environ.get("CLQ_ONNXRUNTIME_GPU")
    if folder is None:
        pytest.skip("CLQ_ONNXRUNTIME_GPU names no folder with onnxruntime-gpu")
    if first_missing(["libcuda.so.1"]) == "":
        pytest.skip("this machine has a GPU driver")
    code = "from clq_serve.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([folder, *sys.path]), "CLQ_SERVE_DEVICE": device},
    )
    assert done.returncode == 1
    assert f"clq-serve: device {device}: " in done.stderr
    assert "cannot load libcuda.so.1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.gpu
def test_the_cuda_provider_gives_what_the_cpu_gives() -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built without CUDA")
    bundle = load_bundle(builtin_bundle_path())
    on_gpu = load_model(Settings(device="cuda:0"), bundle.path)  # compares golden outputs
    batch = np.random.default_rng(0).integers(0, 256, (2, 640, 640, 3), dtype=np.uint8)
    found = on_gpu.lanes[0]._engine.run(batch)
    score, box_px = candidate_difference(found, OnnxEngine(bundle, 1).run(batch), 0.05)
    assert score < 1e-3
    assert box_px < 0.1
