"""How large and how fast the three forms of the deformable convolution are in ONNX Runtime.

`python benchmarks/dcn_forms.py [BUNDLE]` brings a bundle of the form `standard` into the two others
and runs all three on the same image, by turns, in one process. The last column is the time divided
by that of the standard form.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime

from clq_export.choices import DcnForm
from clq_export.dcn_forms import with_dcn
from clq_serve.bundle import MODEL_FILE, builtin_bundle_path, describe_file, load_bundle
from clq_serve.engine import OnnxEngine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="[default: the built-in model]")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 832), metavar=("W", "H"))
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle or builtin_bundle_path())
    width, height = arguments.size
    batch = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    forms: tuple[DcnForm, ...] = get_args(DcnForm)
    engines, sizes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for form in forms:
            place = Path(folder) / form
            place.mkdir()
            onnx.save(with_dcn(onnx.load(bundle.model_path), form), place / MODEL_FILE)
            entry = describe_file(place / MODEL_FILE)
            files = bundle.manifest.files | {MODEL_FILE: entry}
            manifest = bundle.manifest.model_copy(update={"files": files})
            changed = replace(bundle, manifest=manifest, path=place)
            engines[form], sizes[form] = OnnxEngine(changed, arguments.threads), entry.bytes
    times: dict[str, list[float]] = {form: [] for form in forms}
    for turn in range(arguments.repeats + 1):
        for form, engine in engines.items():
            start = time.perf_counter()
            engine.run(batch)
            if turn > 0:
                times[form].append(1e3 * (time.perf_counter() - start))
    print(
        f"{bundle.manifest.name}/{bundle.manifest.version}, {width} x {height}, "
        f"{arguments.threads} threads, ONNX Runtime {onnxruntime.__version__}, median of "
        f"{arguments.repeats} by turns"
    )
    print(f"{'form':10s} {'MB':>6s} {'ms':>8s} {'ratio':>7s}")
    base = statistics.median(times["standard"])
    for form, values in times.items():
        taken = statistics.median(values)
        print(f"{form:10s} {sizes[form] / 1e6:6.2f} {taken:8.1f} {taken / base:6.2f}x")


if __name__ == "__main__":
    main()
