"""What engines keep in memory: `python benchmarks/memory.py [BUNDLE] [--reloads N]`.

Loads a model as the service does, runs images of four shapes in all lanes at the same time, loads
it again and again, and prints the resident memory after each step; then the same with ONNX
Runtime's defaults, a pool for each session and a memory pattern for each shape, and the processor
time of one image. Each half runs in a process of its own.
"""

import argparse
import multiprocessing
import re
import statistics
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime

from clq_serve import engine as engine_module
from clq_serve.bundle import builtin_bundle_path
from clq_serve.devices import Device
from clq_serve.loading import LoadedModel, load_model
from clq_serve.settings import Settings

SIZES = ((1280, 832), (832, 1280), (1088, 832), (640, 640))  # width x height


def resident_mb() -> int:
    """VmRSS of this process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) // 1024


def defaults(threads: int, spinning: bool, device: Device) -> onnxruntime.SessionOptions:
    """Session options without what the service adds to save memory."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return options


def all_shapes(model: LoadedModel) -> list[float]:
    """Runs every shape in every lane at the same time, then times single images; seconds."""
    batches = [np.zeros((1, height, width, 3), np.uint8) for width, height in SIZES]

    def run(lane: int) -> None:
        for batch in batches:
            model.lanes[lane]._engine.run(batch)

    threads = [threading.Thread(target=run, args=[lane]) for lane in range(len(model.lanes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = []
    for _ in range(5):
        start = time.process_time()
        model.lanes[0]._engine.run(batches[0])
        took.append(time.process_time() - start)
    return took


def measure(name: str, path: Path, reloads: int) -> None:
    """Prints the lines of one half."""
    if name == "defaults":
        engine_module._session_options = defaults
    print(f"{name:10} imports {resident_mb():5} MB")
    model = load_model(Settings(), path)
    print(f"{name:10} loaded  {resident_mb():5} MB   {model.placement}")
    took = all_shapes(model)
    print(f"{name:10} working {resident_mb():5} MB   {statistics.median(took):.3f} s an image")
    for count in range(1, reloads + 1):
        model = load_model(Settings(), path)
        if count % max(1, reloads // 4) == 0:
            print(f"{name:10} {count:3} reloads {resident_mb():3} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--reloads", type=int, default=20)
    arguments = parser.parse_args()
    path = arguments.bundle or builtin_bundle_path()
    for name in ("service", "defaults"):
        half = multiprocessing.get_context("spawn").Process(
            target=measure, args=(name, path, arguments.reloads)
        )
        half.start()
        half.join()


if __name__ == "__main__":
    main()
