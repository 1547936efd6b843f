"""The command `clq-export tensorrt`: what it takes, and that it keeps only what it has proved.

The GPU and TensorRT are stand-ins (tests/fake_gpu.py) whose engine is ONNX Runtime on the graph
that TensorRT would be given; what needs the real ones is marked `gpu`.
"""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_gpu import FakeCuda, FakeEngine, fake_tensorrt
from typer.testing import CliRunner

from clq_export.cli import app
from clq_export.errors import ExportError, ParityError
from clq_export.tensorrt_build import Built, PlanRequest, build, parse_profile
from clq_serve.bundle import builtin_bundle_path, load_bundle
from clq_serve.candidates import Candidates
from clq_serve.tensorrt_plan import Profile, find_plan

real_cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")

SHAPES = "1x512x768,1x512x768,2x512x768"
HERE = {"tensorrt": "11.4.0.106", "compute_capability": "9.0"}


class Machine:
    """What `build_plan` was asked for, and an engine that computes the graph it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        source = builtin_bundle_path()
        self.folder = folder / source.parent.name / source.name
        shutil.copytree(source, self.folder)
        self.bundle = load_bundle(self.folder)
        self.cuda = FakeCuda(real_cuda)
        self.engine = FakeEngine(self.cuda, self.compute, self.bundle.manifest.outputs.count)
        self.asked: dict[str, Any] = {}
        self.registered: list[int] = []
        self.score_factor = 1.0
        import cuda.bindings

        monkeypatch.setattr(cuda.bindings, "runtime", self.cuda)
        monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(self.engine))
        network = SimpleNamespace(build_plan=self.build_plan)
        monkeypatch.setitem(sys.modules, "clq_export.tensorrt_network", network)
        plugin = SimpleNamespace(register_plugins=self.registered.append)
        monkeypatch.setitem(sys.modules, "clq_export.tensorrt_plugin", plugin)

    def build_plan(
        self, graph: bytes, input_name: str, profiles: tuple[Profile, ...], **options: Any
    ) -> bytes:
        self.asked = {"input_name": input_name, "profiles": profiles, **options}
        self.engine.num_optimization_profiles = len(profiles)
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        options["timing_cache"].write_bytes(b"TIMES")
        return b"PLAN"

    def compute(self, images: np.ndarray) -> Candidates:
        found = Candidates(*self.session.run(list(Candidates._fields), {"images": images}))
        return found._replace(scores=self.score_factor * found.scores)

    def build(self, out: Path | None = None, **other: Any) -> Built:
        arguments: dict[str, Any] = {
            "precision": "fp32",
            "profiles": (parse_profile(SHAPES, 64),),
            "plugin": True,
        }
        return build(
            PlanRequest(
                bundle=self.bundle,
                out=out or self.folder / "engines",
                device=0,
                workspace_bytes=1 << 30,
                threads=2,
                **(arguments | other),
            )
        )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_plan_that_gives_the_same_is_kept_where_the_service_finds_it(machine, precision):
    built = machine.build(precision=precision)
    digest = machine.bundle.digest[7:23]
    assert built.path.name == f"{digest}-trt11.4.0.106-sm90-{precision}.plan"
    assert (built.plugins, built.inputs) == (4, 3)
    assert machine.registered == [90]
    assert machine.asked["plugins"] == 4
    assert machine.asked["workspace_bytes"] == 1 << 30
    assert machine.asked["input_name"] == "images"
    plan = find_plan(load_bundle(machine.folder), None, **HERE)
    assert (plan.data, plan.info.precision) == (b"PLAN", precision)
    assert plan.info.profiles == machine.asked["profiles"] == (parse_profile(SHAPES, 64),)
    assert built.score <= plan.info.accepted_score
    names = sorted(item.name for item in built.path.parent.iterdir())
    assert names == [
        built.path.with_suffix(".json").name,
        built.path.name,
        "timing-trt11.4.0.106-sm90.cache",
    ]


def test_a_plan_that_differs_is_not_kept_and_the_one_before_stays(machine):
    before = machine.build().path.read_bytes()
    machine.score_factor = 0.9
    with pytest.raises(ParityError, match=r"golden image 0: the engine differs .* is not kept"):
        machine.build()
    plan = find_plan(machine.bundle, None, **HERE)
    assert plan.data == before
    assert len(list((machine.folder / "engines").iterdir())) == 3


def test_without_profiles_one_takes_all_that_the_input_rule_allows(machine, monkeypatch):
    monkeypatch.setattr("clq_export.tensorrt_build.compare", lambda *_: (0.0, 0.0))
    machine.build(profiles=(), plugin=False)
    (profile,) = machine.asked["profiles"]
    rule = machine.bundle.manifest.input
    assert profile.min == (1, rule.pad.multiple, rule.pad.multiple, 3)
    assert profile.max[0] == 8
    assert machine.registered == []


def test_a_build_that_fails_leaves_nothing(machine, monkeypatch):
    def refuse(*_: Any, **__: Any) -> bytes:
        raise ExportError("TensorRT builds no engine; what it logged says why")

    monkeypatch.setattr(sys.modules["clq_export.tensorrt_network"], "build_plan", refuse)
    with pytest.raises(ExportError, match="builds no engine"):
        machine.build()
    assert not (machine.folder / "engines").exists()


def test_a_folder_that_cannot_be_written_is_one_error(machine, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file/engines: cannot be written"):
        machine.build(tmp_path / "file" / "engines")


def test_profiles_that_leave_out_a_golden_image_are_refused(machine):
    small = parse_profile("1x64x64,1x64x64,1x128x128", 64)
    with pytest.raises(ExportError, match="golden image 0 has shape 1x512x768, which no profile"):
        machine.build(profiles=(small,))


def test_an_older_tensorrt_is_refused(machine, monkeypatch):
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "10.9.0.34")
    with pytest.raises(ExportError, match=r"TensorRT 10\.9\.0\.34: accepted: 10\.16 or newer"):
        machine.build()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1x64x64", "accepted: MIN,OPT,MAX, each as NxHxW"),
        ("1x64,1x64,1x64", "accepted: MIN,OPT,MAX, each as NxHxW"),
        ("axbxc,1x64x64,1x64x64", "accepted: MIN,OPT,MAX, each as NxHxW"),
        ("1x64x64,2x64x64,1x64x64", "accepted: no side of MIN above OPT"),
        ("1x64x64,1x64x100,1x64x128", "1x64x100: accepted: N from 1, H and W multiples of 64"),
        ("0x64x64,1x64x64,1x64x64", "0x64x64: accepted: N from 1"),
    ],
)
def test_a_wrong_profile_is_refused(text, message):
    with pytest.raises(ExportError, match=message):
        parse_profile(text, 64)


def test_the_command_says_in_one_line_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    source = builtin_bundle_path()
    out = tmp_path / "plans"
    arguments = ["tensorrt", str(source), "--shapes", SHAPES, "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ExportError)
    assert "clq-export[tensorrt] installs it, see docs/gpu.md" in str(result.exception)
    assert not out.exists()


def test_the_command_prints_the_differences_and_the_plan(machine):
    arguments = ["tensorrt", str(machine.folder), "--precision", "fp16", "--shapes", SHAPES]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "against ONNX Runtime over 3 batches: scores within" in result.output
    assert "4 nodes by our plugin" in result.output
    assert "-trt11.4.0.106-sm90-fp16.plan" in result.output


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("plugin", [True, False])
def test_a_real_plan_of_the_built_in_model_gives_what_onnx_runtime_gives(
    precision, plugin, tmp_path
):
    """Needs a GPU, TensorRT and Triton."""
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    if real_cuda.cudaGetDeviceCount()[0].value != 0:
        pytest.skip("CUDA finds no GPU")
    request = PlanRequest(
        bundle=load_bundle(builtin_bundle_path()),
        precision=precision,
        profiles=(parse_profile("1x448x448,1x512x768,4x768x768", 64),),
        out=tmp_path,
        device=0,
        plugin=plugin,
        workspace_bytes=4 << 30,
        threads=4,
    )
    built = build(request)
    print(built)
    assert built.plugins == (4 if plugin else 0)
