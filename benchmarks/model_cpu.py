"""Images a second of the model on the CPU: `python benchmarks/model_cpu.py [CHECKPOINT]`.

By turns, in one process, on the same prepared image: torch eager and torch.compile (random weights
of the configuration without CHECKPOINT: speed does not depend on them), ONNX Runtime and OpenVINO
in float32, OpenVINO with bfloat16 allowed, and ONNX Runtime with an 8-bit bundle, which
`--int8 BUNDLE` names or which is made here, calibrated on noise (its speed does not depend on that
either). torch.compile compiles anew for each size, for minutes: `--no-compile` leaves it out.

The last column is the share of the machine's float32 peak that the run reaches: its multiply-adds,
counted as `clq-export inspect` does, over those that one large matrix product does in the same
time, measured between the turns. Numbers of fewer bits may get above 100 %.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from bundle_forms import with_graph_in

from clq_export.inspection import inspect_bundle
from clq_export.int8 import quantise
from clq_export.openvino_engine import OpenVinoEngine
from clq_serve.bundle import MODEL_FILE, Bundle, builtin_bundle_path, load_bundle
from clq_serve.engine import OnnxEngine
from clq_train.checkpoint import load_model
from clq_train.config import load_config
from clq_train.detector import ClqDetector
from clq_train.evaluate import TorchEngine

CONFIG = Path(__file__).parents[1] / "train/configs/webui_nano.yaml"
SIZES = ((1280, 832), (1024, 768), (640, 640))  # of padded inputs, width x height
PEAK_SIDE = 2048  # of the two square matrices
BASE = "torch eager"
Run = Callable[[np.ndarray], object]


def torch_model(checkpoint: Path | None) -> ClqDetector:
    """The checkpoint's model, or one of random weights."""
    if checkpoint is not None:
        return load_model(checkpoint)[0].eval()
    config = load_config(CONFIG, [])
    return ClqDetector(config.model, len(config.data.classes)).eval()


def compiled(model: ClqDetector, size: tuple[int, int]) -> Run:
    """The model by torch.compile; raises what torch raises if there is no compiler."""
    fast = torch.compile(model.candidates, dynamic=False)

    @torch.inference_mode()
    def run(batch: np.ndarray) -> object:
        return fast(torch.from_numpy(batch))

    width, height = size  # a missing compiler shows at the first size, not at one of its own
    run(np.zeros((1, height, width, 3), np.uint8))
    return run


def int8_of(bundle: Bundle, folder: Path, sizes: tuple[tuple[int, int], ...]) -> Bundle:
    """An 8-bit graph of the bundle, good for its speed alone."""
    place = folder / bundle.path.parent.name / bundle.path.name
    shutil.copytree(bundle.path, place)
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (h // 2, w // 2, 3), dtype=np.uint8) for w, h in sizes[-1:]]
    quantise(bundle.model_path, place / MODEL_FILE, noise, "onnxruntime")
    return with_graph_in(bundle, place)


def peak_macs_per_s(a: torch.Tensor, b: torch.Tensor) -> float:
    """Multiply-adds a second of one product of two square matrices."""
    start = time.perf_counter()
    torch.mm(a, b)
    return PEAK_SIDE**3 / (time.perf_counter() - start)


def runs(
    arguments: argparse.Namespace, bundle: Bundle, folder: Path, sizes: tuple[tuple[int, int], ...]
) -> dict[str, Run]:
    """What is compared; whatever is missing here is named with the reason."""
    threads = arguments.threads
    model = torch_model(arguments.checkpoint)
    found: dict[str, Run] = {BASE: TorchEngine(model).run}
    if arguments.compile:
        try:
            found["torch.compile"] = compiled(model, sizes[0])
        except Exception as error:  # torch has no common base class for a missing compiler
            print(f"torch.compile: left out: {str(error).strip().splitlines()[0][:120]}")
    found["ONNX Runtime f32"] = OnnxEngine(bundle, threads).run
    small = load_bundle(arguments.int8) if arguments.int8 else int8_of(bundle, folder, SIZES)
    found["ONNX Runtime int8"] = OnnxEngine(small, threads).run
    found["OpenVINO f32"] = OpenVinoEngine(bundle, threads).run
    found["OpenVINO bf16"] = OpenVinoEngine(bundle, threads, "bf16").run
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--bundle", type=Path, help="[default: the built-in model]")
    parser.add_argument("--int8", type=Path, help="its 8-bit sibling [default: one is made]")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("W", "H"), help="padded input [default: three sizes]"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = (tuple(arguments.size),) if arguments.size else SIZES
    bundle = load_bundle(arguments.bundle or builtin_bundle_path())
    a, b = torch.rand(2, PEAK_SIDE, PEAK_SIDE)
    rng = np.random.default_rng(0)
    print(
        f"{bundle.manifest.name}/{bundle.manifest.version}, {arguments.threads} threads, "
        f"one image, median of {arguments.repeats} by turns; torch {torch.__version__}, "
        f"ONNX Runtime {onnxruntime.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        compared = runs(arguments, bundle, Path(folder), sizes)
        for width, height in sizes:
            batch = rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
            parts = inspect_bundle(bundle, (height, width), arguments.threads, 1).parts
            macs = sum(part.macs for part in parts.values())
            for run in compared.values():
                run(batch)
            peaks: list[float] = []
            times: dict[str, list[float]] = {name: [] for name in compared}
            for _ in range(arguments.repeats):
                peaks.append(peak_macs_per_s(a, b))
                for name, run in compared.items():
                    start = time.perf_counter()
                    run(batch)
                    times[name].append(time.perf_counter() - start)
            peak = statistics.median(peaks)
            work = f"{macs / 1e9:.2f} GMAC an image; peak {peak / 1e9:.0f} GMAC/s"
            print(f"\n{width} x {height}: {work}")
            print(f"{'':20s} {'ms':>8s} {'images/s':>9s} {'ratio':>7s} {'of peak':>8s}")
            base = statistics.median(times[BASE])
            for name, values in times.items():
                taken = statistics.median(values)
                print(
                    f"{name:20s} {1e3 * taken:8.1f} {1 / taken:9.2f} {base / taken:6.2f}x "
                    f"{macs / taken / peak:8.0%}"
                )


if __name__ == "__main__":
    main()
