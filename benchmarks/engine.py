"""How much faster the exported model is than torch: `python benchmarks/engine.py [CHECKPOINT]`.

Both run the same prepared image on the same cores, by turns, in one process: the served graph in
ONNX Runtime, and the checkpoint in torch in evaluation mode. Without CHECKPOINT, torch runs random
weights of the same configuration (its speed does not depend on them).
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from clq_serve.bundle import builtin_bundle_path, load_bundle
from clq_serve.engine import OnnxEngine
from clq_train.checkpoint import load_model
from clq_train.config import load_config
from clq_train.detector import ClqDetector
from clq_train.evaluate import TorchEngine

CONFIG = Path(__file__).parents[1] / "train/configs/webui_nano.yaml"
PAUSE_S = 0.3  # ONNX Runtime's threads spin for a while after a run, and would slow torch's turn
SIZES = ((1280, 832), (1024, 768), (640, 640))  # of padded inputs, width x height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    bundle = load_bundle(builtin_bundle_path())
    onnx = OnnxEngine(bundle, threads)
    if arguments.checkpoint is None:
        config = load_config(CONFIG, [])
        model = ClqDetector(config.model, len(config.data.classes)).eval()
    else:
        model, _ = load_model(arguments.checkpoint)
    reference = TorchEngine(model)
    print(f"{bundle.manifest.name}/{bundle.manifest.version}, {threads} threads, one image,")
    print(f"median of {arguments.repeats} by turns")
    print(f"{'input':>12} {'torch':>10} {'ONNX Runtime':>13} {'ratio':>7}")
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        batch = rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        times: dict[str, list[float]] = {"torch": [], "onnx": []}
        for _ in range(arguments.repeats + 1):
            for name, engine in (("torch", reference), ("onnx", onnx)):
                time.sleep(PAUSE_S)
                start = time.perf_counter()
                engine.run(batch)
                times[name].append(1e3 * (time.perf_counter() - start))
        slow, fast = (statistics.median(values[1:]) for values in times.values())
        size = f"{width} x {height}"
        print(f"{size:>12} {slow:7.0f} ms {fast:10.0f} ms {slow / fast:6.1f}x")


if __name__ == "__main__":
    main()
