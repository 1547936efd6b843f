"""How large and how fast the three forms of the deformable convolution are in ONNX Runtime.

`python benchmarks/dcn_forms.py [BUNDLE]` brings a bundle of the form `standard` into the two others
and runs all three on the same image, by turns, in one process. The last column is the time divided
by that of the standard form.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

import onnx
from bundle_forms import read_arguments, with_graph_in

from clq_export.choices import DcnForm
from clq_export.dcn_forms import with_dcn
from clq_serve.bundle import MODEL_FILE
from clq_serve.engine import OnnxEngine


def main() -> None:
    asked = read_arguments(__doc__.splitlines()[0], repeats=15)
    forms: tuple[DcnForm, ...] = get_args(DcnForm)
    engines, sizes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for form in forms:
            place = Path(folder) / form
            place.mkdir()
            onnx.save(with_dcn(onnx.load(asked.bundle.model_path), form), place / MODEL_FILE)
            changed = with_graph_in(asked.bundle, place)
            engines[form] = OnnxEngine(changed, asked.threads)
            sizes[form] = changed.manifest.files[MODEL_FILE].bytes
    times: dict[str, list[float]] = {form: [] for form in forms}
    for turn in range(asked.repeats + 1):
        for form, engine in engines.items():
            start = time.perf_counter()
            engine.run(asked.batch)
            if turn > 0:
                times[form].append(1e3 * (time.perf_counter() - start))
    print(f"{asked}, median of {asked.repeats} by turns")
    print(f"{'form':10s} {'MB':>6s} {'ms':>8s} {'ratio':>7s}")
    base = statistics.median(times["standard"])
    for form, values in times.items():
        taken = statistics.median(values)
        print(f"{form:10s} {sizes[form] / 1e6:6.2f} {taken:8.1f} {taken / base:6.2f}x")


if __name__ == "__main__":
    main()
