"""From a bundle to a TensorRT plan that was run and compared with ONNX Runtime."""

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clq_export.errors import ExportError, ParityError
from clq_export.tensorrt_graph import Precision, engine_graph
from clq_serve.bundle import Bundle
from clq_serve.candidates import Candidates
from clq_serve.compare import candidate_difference
from clq_serve.detector import Engine
from clq_serve.devices import Device, DeviceKind
from clq_serve.engine import OnnxEngine
from clq_serve.errors import BundleError, EngineError, SettingsError
from clq_serve.golden import GOLDEN_FLOOR, Tolerance, read_golden
from clq_serve.preprocess import Pixels
from clq_serve.providers import profile_shapes
from clq_serve.tensorrt_engine import PlanEngine, compute_capability
from clq_serve.tensorrt_plan import Plan, Profile, read_plan_info, write_plan

# float16 in ONNX Runtime differs from float32 by up to 8e-4 and 0.2 px on the built-in model's
# golden images; TensorRT may sum in another order.
ACCEPTED: dict[Precision, Tolerance] = {"fp32": Tolerance(), "fp16": Tolerance(0.01, 1.0)}
MINIMUM_VERSION = (10, 16)


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What to build.

    profiles         none takes one for all shapes that the bundle's input rule allows, batches to 8
    out              folder of the plan, its sidecar and the timing cache
    plugin           False: TensorRT's own plugin for the deformable convolution
    workspace_bytes  most scratch memory that a kernel may ask for
    """

    bundle: Bundle
    precision: Precision
    profiles: tuple[Profile, ...]
    out: Path
    device: int
    plugin: bool
    workspace_bytes: int
    threads: int


@dataclass(frozen=True, slots=True)
class Built:
    """The plan that was kept; the largest differences from ONNX Runtime over `inputs` batches."""

    path: Path
    plugins: int
    score: float
    box_px: float
    inputs: int


def parse_profile(text: str, multiple: int) -> Profile:
    """The profile "MIN,OPT,MAX", each as NxHxW, e.g. 1x640x640,1x832x1280,8x1280x1280.

    Raises ExportError.
    """
    try:
        sides = [[int(side) for side in shape.split("x")] for shape in text.split(",")]
    except ValueError:
        sides = []
    if [len(one) for one in sides] != [3, 3, 3]:
        raise ExportError(f"--shapes {text}: accepted: MIN,OPT,MAX, each as NxHxW")
    for smaller, larger in itertools.pairwise(sides):
        if any(low > high for low, high in zip(smaller, larger, strict=True)):
            raise ExportError(
                f"--shapes {text}: accepted: no side of MIN above OPT, or of OPT above MAX"
            )
    for n, height, width in sides:
        if min(n, height, width) < 1 or height % multiple or width % multiple:
            raise ExportError(
                f"--shapes {text}: {n}x{height}x{width}: accepted: N from 1, H and W multiples "
                f"of {multiple}"
            )
    small, usual, large = ((n, height, width, 3) for n, height, width in sides)
    return Profile(min=small, opt=usual, max=large)


@dataclass(frozen=True, slots=True)
class _Machine:
    """The modules tensorrt and cuda.bindings.runtime, and what the GPU is, e.g. "9.0"."""

    trt: Any
    cuda: Any
    capability: str


def build(request: PlanRequest) -> Built:
    """The plan, which gives what ONNX Runtime gives; it lies with its sidecar in request.out.

    Raises ExportError if TensorRT, a GPU or Triton is missing or the bundle can't be built;
    ParityError if the plan gives something else.  Neither leaves a plan behind.
    """
    bundle = request.bundle
    profiles = request.profiles or (_whole_profile(bundle),)
    batches = list(_inputs(bundle, profiles))
    graph, plugins = engine_graph(str(bundle.model_path), request.precision, request.plugin)
    machine = _machine(request.device)
    if plugins:
        _register_plugins(machine.capability)
    try:
        with _beside(request.out) as folder:
            path = _write_beside(
                folder, request, profiles, graph.SerializeToString(), plugins, machine
            )
            score, box_px = _prove(path, request, batches, machine)
            final = request.out / path.name
            os.replace(path.with_suffix(".json"), final.with_suffix(".json"))
            os.replace(path, final)
    except OSError as err:
        raise ExportError(f"{request.out}: cannot be written: {err}") from err
    except (BundleError, EngineError) as err:
        raise ExportError(str(err)) from err
    return Built(final, plugins, score, box_px, len(batches))


def _write_beside(
    folder: Path,
    request: PlanRequest,
    profiles: tuple[Profile, ...],
    graph: bytes,
    plugins: int,
    machine: _Machine,
) -> Path:
    """The path in `folder` of the new plan, with its sidecar, not yet proved."""
    from clq_export.tensorrt_network import build_plan

    version, capability = machine.trt.__version__, machine.capability
    cache = f"timing-trt{version}-sm{capability.replace('.', '')}.cache"
    data = build_plan(
        graph,
        request.bundle.manifest.input.name,
        profiles,
        plugins=plugins,
        workspace_bytes=request.workspace_bytes,
        timing_cache=request.out / cache,
    )
    return write_plan(
        data,
        folder,
        request.bundle,
        tensorrt=version,
        compute_capability=capability,
        precision=request.precision,
        accepted=ACCEPTED[request.precision],
        profiles=profiles,
    )


def _prove(
    path: Path, request: PlanRequest, batches: list[tuple[str, Pixels]], machine: _Machine
) -> tuple[float, float]:
    """The largest differences from ONNX Runtime, run by the service's own engine."""
    plan = Plan(path, read_plan_info(path), path.read_bytes())
    engine = PlanEngine(request.bundle, plan, request.device, False, machine.trt, machine.cuda)
    reference = OnnxEngine(request.bundle, request.threads)
    return compare(engine, reference, batches, ACCEPTED[request.precision])


def compare(
    engine: Engine, reference: Engine, batches: list[tuple[str, Pixels]], accepted: Tolerance
) -> tuple[float, float]:
    """The largest difference of a score and of a box over all batches.  Raises ParityError."""
    worst = Tolerance(0.0, 0.0)
    for name, batch in batches:
        # Image by image: the reference needs not the memory for a large batch.
        expected = [reference.run(batch[i : i + 1]) for i in range(len(batch))]
        joined = Candidates(*(np.concatenate(column) for column in zip(*expected, strict=True)))
        score, box_px = candidate_difference(engine.run(batch), joined, GOLDEN_FLOOR)
        if not (score <= accepted.score and box_px <= accepted.box_px):
            raise ParityError(
                f"{name}: the engine differs from ONNX Runtime by {score:.2g} of score (accepted: "
                f"{accepted.score:g}) and {box_px:.2g} px (accepted: {accepted.box_px:g}); it is "
                "not kept"
            )
        worst = Tolerance(max(worst.score, score), max(worst.box_px, box_px))
    return worst


def _inputs(bundle: Bundle, profiles: tuple[Profile, ...]) -> Iterator[tuple[str, Pixels]]:
    """The golden images, and for each profile a batch of its usual shape that they are laid out on.

    Raises ExportError if no profile takes a golden image: the service compares it at load.
    """
    examples = read_golden(bundle)
    for index, example in enumerate(examples):
        shape = example.images.shape
        if not any(_takes(profile, shape) for profile in profiles):
            raise ExportError(
                f"golden image {index} has shape {'x'.join(map(str, shape[:3]))}, which no profile "
                "takes; the service would not load the plan"
            )
        yield f"golden image {index}", example.images
    for number, profile in enumerate(profiles):
        n, height, width, _ = profile.opt
        batch = np.stack(
            [_tiled(examples[i % len(examples)].images[0], height, width, i) for i in range(n)]
        )
        yield f"batch {profile.opt} of profile {number}", batch


def _tiled(image: Pixels, height: int, width: int, start: int) -> Pixels:
    """The image repeated to that size, from row and column `start` on."""
    rows = (np.arange(height) + start) % image.shape[0]
    cols = (np.arange(width) + start) % image.shape[1]
    return image[rows[:, None], cols]


def _takes(profile: Profile, shape: tuple[int, ...]) -> bool:
    return all(a <= side <= b for a, side, b in zip(profile.min, shape, profile.max, strict=True))


def _whole_profile(bundle: Bundle) -> Profile:
    small, usual, large = profile_shapes(bundle, 8)
    return Profile.model_validate({"min": small, "opt": usual, "max": large})


def _machine(index: int) -> _Machine:
    """Raises ExportError if TensorRT, CUDA or the GPU is not there."""
    try:
        import tensorrt as trt
        from cuda.bindings import runtime as cuda
    except ImportError as err:
        raise ExportError(f"{err}; clq-export[tensorrt] installs it, see docs/gpu.md") from err
    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < MINIMUM_VERSION:
        raise ExportError(f"TensorRT {trt.__version__}: accepted: 10.16 or newer")
    try:
        capability = compute_capability(cuda, Device(DeviceKind.PLAN, index))
    except SettingsError as err:
        raise ExportError(str(err)) from err
    cuda.cudaSetDevice(index)
    return _Machine(trt, cuda, capability)


def _register_plugins(capability: str) -> None:
    try:
        from clq_export.tensorrt_plugin import register_plugins
    except ImportError as err:
        raise ExportError(f"{err}; clq-export[tensorrt] installs it, or give --no-plugin") from err
    register_plugins(int(capability.replace(".", "")))


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder in `out` that is gone with the block, and with it an `out` that is new and empty."""
    folder = out / f".building-{os.getpid()}"
    new = not out.exists()
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if new and not any(out.iterdir()):
            out.rmdir()
