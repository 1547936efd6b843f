"""The TensorRT engine, without a GPU: its names in the real bindings, its logic on a stand-in.

What needs a GPU is marked `gpu` and compares with ONNX Runtime.  tests/fake_gpu.py says what the
stand-in checks and what it does not.
"""

import ast
import gc
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeCuda, FakeEngine, fake_tensorrt
from stub_tensorrt import stub_environment, stub_libraries, tensorrt_folders

import clq_serve.tensorrt_engine as module
from clq_serve.bundle import builtin_bundle_path, load_bundle
from clq_serve.candidates import Candidates
from clq_serve.compare import candidate_difference
from clq_serve.devices import Device, DeviceKind, GpuOptions
from clq_serve.engine import OnnxEngine
from clq_serve.errors import BundleError, EngineError, SettingsError
from clq_serve.golden import Tolerance
from clq_serve.loading import load_model
from clq_serve.settings import Settings
from clq_serve.tensorrt_engine import PlanEngine, open_plan
from clq_serve.tensorrt_plan import Profile, find_plan, write_plan

real_cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")

PLAN_0 = Device(DeviceKind.PLAN)
PROFILES = (
    Profile(min=(1, 64, 64, 3), opt=(2, 128, 192, 3), max=(4, 192, 192, 3)),
    Profile(min=(5, 64, 64, 3), opt=(6, 64, 64, 3), max=(8, 64, 64, 3)),
)


class Machine:
    """A stand-in GPU, and the tiny bundle with a plan for it."""

    def __init__(self, folder: Path, compute: Callable[..., Candidates]) -> None:
        self.bundle = load_bundle(folder)
        self.cuda = FakeCuda(real_cuda)
        self.engine = FakeEngine(self.cuda, compute, self.bundle.manifest.outputs.count)
        self.engine.num_optimization_profiles = len(PROFILES)
        self.trt = fake_tensorrt(self.engine)
        self.put(b"PLAN")

    def put(self, data: bytes) -> None:
        write_plan(
            data,
            self.bundle.path / "engines",
            self.bundle,
            tensorrt="11.4.0.106",
            compute_capability="9.0",
            precision="fp32",
            accepted=Tolerance(),
            profiles=PROFILES,
        )

    def open(self, cuda_graphs: bool = True) -> PlanEngine:
        plan = find_plan(self.bundle, None, tensorrt="11.4.0.106", compute_capability="9.0")
        return PlanEngine(self.bundle, plan, 0, cuda_graphs, self.trt, self.cuda)


@pytest.fixture
def machine(bundle_copy: Path, tiny_reference: Callable[..., Candidates]) -> Machine:
    return Machine(bundle_copy, tiny_reference)


def images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def assert_same(found: Candidates, expected: Candidates) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_every_shape_gives_its_own_results_in_any_order(
    cuda_graphs: bool, machine: Machine, tiny_reference: Callable[..., Candidates]
) -> None:
    engine = machine.open(cuda_graphs)
    shapes = [(1, 64, 64), (4, 192, 192), (2, 64, 192), (1, 192, 64), (8, 64, 64)]
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(len(shapes)), 4))
    for seed, which in enumerate(order):
        batch = images(seed, *shapes[which])
        assert_same(engine.run(batch), tiny_reference(batch))
    assert len(machine.cuda.graphs) == (len(shapes) if cuda_graphs else 0)
    assert machine.cuda.launches == (3 * len(shapes) if cuda_graphs else 0)


def test_shapes_beyond_the_limit_drop_the_one_not_used_for_longest(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tiny_reference: Callable[..., Candidates],
) -> None:
    monkeypatch.setattr(module, "SHAPES_KEPT", 2)
    engine = machine.open()
    for turn in range(3):
        for height in (64, 128, 192):
            for _ in range(2):
                batch = images(turn, 1, height, 64)
                assert_same(engine.run(batch), tiny_reference(batch))
    assert len(machine.cuda.graphs) == 2


def test_results_do_not_change_with_the_next_run(machine: Machine) -> None:
    engine = machine.open()
    first = engine.run(images(0, 1, 64, 64))
    kept = Candidates(*(array.copy() for array in first))
    engine.run(images(1, 1, 64, 64))
    assert_same(first, kept)


def test_several_threads_get_their_own_results(
    machine: Machine, tiny_reference: Callable[..., Candidates]
) -> None:
    engine = machine.open()
    wrong: list[int] = []

    def ask(seed: int) -> None:
        batch = images(seed, 1 + seed % 3, 64, 128)
        expected = tiny_reference(batch)
        for _ in range(20):
            if not np.array_equal(engine.run(batch).scores, expected.scores):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_all_memory_is_freed_with_the_engine(machine: Machine) -> None:
    engine = machine.open()
    for _ in range(3):
        engine.run(images(0, 1, 64, 64))
    cuda = machine.cuda
    assert (len(cuda.device), len(cuda.pinned), len(cuda.graphs)) == (7, 6, 1)
    del engine
    gc.collect()
    assert (cuda.device, cuda.pinned, cuda.graphs, cuda.streams) == ({}, {}, set(), set())


def test_a_shape_outside_the_profiles_is_refused(machine: Machine) -> None:
    engine = machine.open()
    for shape in ((1, 256, 64), (5, 128, 64), (9, 64, 64)):
        with pytest.raises(EngineError, match=r"no batch of shape .*; accepted: \(1, 64, 64, 3\)"):
            engine.run(images(0, *shape))


@pytest.mark.parametrize(
    "name", ["cudaMemcpyAsync", "cudaStreamSynchronize", "cudaGraphLaunch", "cudaSetDevice"]
)
def test_a_cuda_error_is_an_engine_error(name: str, machine: Machine) -> None:
    engine = machine.open()
    engine.run(images(0, 1, 64, 64))
    machine.cuda.fail = name
    with pytest.raises(EngineError, match="CUDA: cudaErrorUnknown"):
        engine.run(images(0, 1, 64, 64))


def test_what_is_allocated_is_freed_when_the_rest_cannot_be(machine: Machine) -> None:
    machine.cuda.fail = "cudaHostAlloc"
    with pytest.raises(EngineError, match="cudaErrorUnknown"):
        machine.open()
    machine.cuda.fail = ""
    gc.collect()
    assert machine.cuda.device == {}


def test_a_plan_that_cannot_be_captured_says_which_setting_helps(machine: Machine) -> None:
    machine.engine.capturable = False
    engine = machine.open()
    engine.run(images(0, 1, 64, 64))
    with pytest.raises(EngineError, match="try the setting cuda_graphs=false"):
        engine.run(images(0, 1, 64, 64))
    plain = machine.open(cuda_graphs=False)
    for _ in range(2):
        plain.run(images(0, 1, 64, 64))


def test_a_plan_that_tensorrt_cannot_load_is_refused(machine: Machine) -> None:
    machine.put(b"another")
    with pytest.raises(BundleError, match="TensorRT cannot load it"):
        machine.open()


def test_a_plan_with_other_tensors_or_profiles_is_refused(machine: Machine) -> None:
    machine.engine.types["labels"] = np.int32
    with pytest.raises(BundleError, match=r"its tensors are .*int32.*; the manifest says .*int64"):
        machine.open()
    machine.engine.types["labels"] = np.int64
    machine.engine.num_optimization_profiles = 1
    with pytest.raises(BundleError, match="has 1 profiles, its sidecar says 2"):
        machine.open()


def test_a_service_loads_the_plan_and_compares_it_with_the_golden_results(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cuda.bindings

    monkeypatch.setitem(sys.modules, "tensorrt", machine.trt)
    monkeypatch.setattr(cuda.bindings, "runtime", machine.cuda)
    settings = Settings(device="plan:0", max_batch=4)
    model = load_model(settings, machine.bundle.path)
    assert (model.provider, model.golden_examples) == ("TensorRT 11.4.0.106", 2)
    assert model.placement == f"plan:0: 1 lane of {settings.threads} thread" + "s" * (
        settings.threads > 1
    )
    with pytest.raises(EngineError, match=r"the plan takes no batch of shape \(8, 192, 192, 3\)"):
        load_model(Settings(device="plan:0", max_batch=8), machine.bundle.path)
    exact = machine.engine.compute
    machine.engine.compute = lambda x: exact(x)._replace(scores=0.5 * exact(x).scores)
    with pytest.raises(BundleError, match="computes other results"):
        load_model(settings, machine.bundle.path)
    with pytest.raises(SettingsError, match="device plan:1: CUDA finds 1 GPUs"):
        load_model(Settings(device="plan:1"), machine.bundle.path)


def test_without_tensorrt_the_device_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(SettingsError, match=r"device plan:0: .*clq-serve\[tensorrt\] installs it"):
        open_plan(load_bundle(tiny_bundle), PLAN_0, GpuOptions())


def test_without_a_gpu_the_device_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if real_cuda.cudaGetDeviceCount()[0].value == 0:
        pytest.skip("this machine has a GPU")
    monkeypatch.setitem(sys.modules, "tensorrt", machine.trt)
    with pytest.raises(SettingsError, match=r"CUDA finds 0 GPUs \(cudaError"):
        open_plan(machine.bundle, PLAN_0, GpuOptions())


# ---- names of the real libraries ----

_ROOTS = {
    r"(self\._)?trt\.(.+)": "",
    r"(self\._)?engine\.(.+)": "ICudaEngine.",
    r"(prepared\.)?context\.(.+)": "IExecutionContext.",
    r"(r)?untime\.(.+)": "Runtime.",
}


def names_used(roots: dict[str, str]) -> set[str]:
    """Dotted names in the source of the engine that start with one of the roots."""
    found = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            for pattern, prefix in roots.items():
                match = re.fullmatch(pattern, text)
                if match and re.fullmatch(r"[\w.]+", match[2]):
                    found.add(prefix + match[2])
    return found


def test_every_cuda_name_exists_in_the_real_bindings() -> None:
    names = names_used(
        {
            r"(self\._)?cuda\.(.+)": "",
            r"(k)?ind\.(.+)": "cudaMemcpyKind.",
            r"(a)?ttributes\.(.+)": "cudaDeviceAttr.",
        }
    )
    assert len(names) >= 20
    missing = []
    for name in names:
        place: object = real_cuda
        for part in name.split("."):
            place = getattr(place, part, None)
        if place is None:
            missing.append(name)
    assert missing == []


def test_the_real_cuda_functions_take_our_kinds_of_arguments() -> None:
    """Without a driver each call gives an error and does nothing; a wrong argument would raise."""
    if real_cuda.cudaGetDeviceCount()[0].value == 0:
        pytest.skip("this machine has a GPU, where these calls would do something")
    stream = real_cuda.cudaStream_t(5)
    to_device = real_cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
    mode = real_cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    major = real_cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
    results = {
        1: [
            real_cuda.cudaSetDevice(0),
            real_cuda.cudaMemcpyAsync(0, 0, 1, to_device, stream),
            real_cuda.cudaStreamSynchronize(stream),
            real_cuda.cudaStreamBeginCapture(stream, mode),
            real_cuda.cudaFree(0),
            real_cuda.cudaFreeHost(0),
        ],
        2: [
            real_cuda.cudaDeviceGetAttribute(major, 0),
            real_cuda.cudaMalloc(8),
            real_cuda.cudaHostAlloc(8, real_cuda.cudaHostAllocDefault),
            real_cuda.cudaStreamCreateWithFlags(real_cuda.cudaStreamNonBlocking),
            real_cuda.cudaStreamEndCapture(stream),
        ],
    }
    for length, each in results.items():
        for result in each:
            assert len(result) == length
            assert result[0].name == real_cuda.cudaGetDeviceCount()[0].name
    assert int(stream) == 5


def test_every_tensorrt_name_exists_in_the_real_bindings(tmp_path: Path) -> None:
    """The bindings import with empty libraries in place of TensorRT's own."""
    if not tensorrt_folders():
        pytest.skip("needs tensorrt_cu13_bindings")
    names = names_used(_ROOTS)
    assert len(names) >= 20
    libraries = stub_libraries(tmp_path)
    code = (
        "import json, sys, functools, tensorrt as trt\n"
        "def there(name):\n"
        "    try: functools.reduce(getattr, name.split('.'), trt)\n"
        "    except AttributeError: return False\n"
        "    return True\n"
        "names = json.load(sys.stdin)\n"
        "print(json.dumps([trt.__version__, [name for name in names if not there(name)]]))\n"
    )
    for index, folder in enumerate(tensorrt_folders()):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(sorted(names)),
            capture_output=True,
            text=True,
            env=stub_environment(folder, libraries, tmp_path / str(index)),
        )
        assert done.returncode == 0, done.stderr
        version, missing = json.loads(done.stdout)
        print(f"TensorRT {version}: {len(names)} names")
        assert missing == [], version


@pytest.mark.gpu
def test_a_real_plan_gives_what_onnx_runtime_gives() -> None:
    """Needs a GPU, TensorRT, and a plan of the built-in model in the folder CLQ_PLANS."""
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    cache = os.environ.get("CLQ_PLANS")
    if cache is None:
        pytest.skip("CLQ_PLANS names no folder of plans")
    bundle = load_bundle(builtin_bundle_path())
    engine = open_plan(bundle, PLAN_0, GpuOptions(cache=Path(cache)))
    reference = OnnxEngine(bundle, 1)
    for seed in range(3):
        for shape in ((1, 832, 1280), (1, 640, 640), (2, 832, 1280)):
            batch = images(seed, *shape)
            difference = candidate_difference(engine.run(batch), reference.run(batch), 0.05)
            assert difference <= engine.tolerance
