"""The built-in model beside torchvision's SSDlite: `python benchmarks/ssdlite.py [--threads N]`.

Both run in ONNX Runtime on the CPU, by turns, in one process, on the same screenshot of 1280 x 800.
SSDlite is ssdlite320_mobilenet_v3_large with as many classes and random weights (its speed does not
depend on them), exported without the suppression and without the resizing to 320 x 320 that its
module has built in: its row ends at the logits and deltas of all anchors, ours includes decoding
and the choice of the best candidates. Ours is resized and padded as in the service. The last two
rows are SSDlite with that input, and with its own of 320 x 320.
"""

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from clq_export.inspection import inspect_bundle
from clq_serve.bundle import builtin_bundle_path, load_bundle
from clq_serve.engine import OnnxEngine
from clq_serve.preprocess import ImageLimits, Pixels, decode_image, prepare, resize

SCREEN = Path(__file__).parents[1] / "tests/data/screens/checkout.png"  # 1280 x 800
OWN_SIDE = 320  # of SSDlite, pixels
CLOSE = 1e-3  # of what ONNX Runtime and torch compute


class Raw(nn.Module):
    """SSDlite from uint8 pixels to the logits and deltas of all its anchors."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        # It counts the background as a class. Without weights_backbone it is what is published.
        whole = ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=classes + 1
        )
        self.backbone, self.head = whole.backbone, whole.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, 3) uint8 -> (N, A, classes + 1), (N, A, 4)."""
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        found = self.head(list(self.backbone(pixels).values()))
        return found["cls_logits"], found["bbox_regression"]


def exported(model: nn.Module, image: Pixels, threads: int) -> Callable[[Pixels], object]:
    """A run of the model in ONNX Runtime, held against torch's once."""
    file, images = io.BytesIO(), torch.from_numpy(image)
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    program.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # As in our engine: the threads of one would spin on through the other's turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    with torch.inference_mode():
        expected = model(images)
    for mine, its in zip(session.run(None, {name: image}), expected, strict=True):
        np.testing.assert_allclose(mine, its.numpy(), rtol=0, atol=CLOSE)
    return lambda batch: session.run(None, {name: batch})


def multiply_adds(model: nn.Module, image: Pixels) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.from_numpy(image))
    return counter.get_total_flops() // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="[default: the built-in model]")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    threads = arguments.threads
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    bundle = load_bundle(arguments.bundle or builtin_bundle_path())
    manifest = bundle.manifest
    decoded = decode_image(SCREEN.read_bytes(), ImageLimits(), manifest.input.background)
    screen = decoded.pixels.copy()  # torch wants arrays that can be written to
    padded, _ = prepare(screen, manifest.input.rule)
    inputs = {
        f"{manifest.name}/{manifest.version}": padded[None],
        "SSDlite": screen[None],
        "SSDlite, input of ours": padded[None],
        "SSDlite, its own size": resize(screen, OWN_SIDE, OWN_SIDE).copy()[None],
    }
    ours, *theirs = inputs
    model = Raw(len(manifest.class_names)).eval()
    parts = inspect_bundle(bundle, padded.shape[:2], threads, 1).parts.values()
    runs = {ours: OnnxEngine(bundle, threads).run}
    parameters = {ours: sum(part.parameters for part in parts)}
    macs = {ours: sum(part.macs for part in parts)}
    for row in theirs:
        runs[row] = exported(model, inputs[row], threads)
        parameters[row] = sum(value.numel() for value in model.parameters())
        macs[row] = multiply_adds(model, inputs[row])
    times: dict[str, list[float]] = {row: [] for row in inputs}
    for _ in range(arguments.repeats + 1):
        for row, run in runs.items():
            start = time.perf_counter()
            run(inputs[row])
            times[row].append(1e3 * (time.perf_counter() - start))
    print(
        f"{threads} threads, one image, median of {arguments.repeats} by turns; ONNX Runtime "
        f"{onnxruntime.__version__}, torchvision {torchvision.__version__}, "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    print("| model | input | parameters | GMACs | ms | least ms | ratio |")
    print("|---" * 7 + "|")
    own = statistics.median(times[ours][1:])
    for row, (_, *taken) in times.items():
        height, width = inputs[row].shape[1:3]
        median = statistics.median(taken)
        print(
            f"| {row} | {width} x {height} | {parameters[row] / 1e6:.2f} M "
            f"| {macs[row] / 1e9:.2f} | {median:.1f} | {min(taken):.1f} | {median / own:.2f} |"
        )


if __name__ == "__main__":
    main()
