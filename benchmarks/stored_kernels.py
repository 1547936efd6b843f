"""What it costs that a bundle stores its kernels in float16 and computes them in float32.

`python benchmarks/stored_kernels.py [BUNDLE]` makes both forms of a bundle's graph, loads each
`--repeats` times and runs both on the same image, by turns, in one process. Times are processor
time of all threads, which other programs disturb less: the median, in brackets the least; ratios
are those of the least. The last line is how far apart the two are on the golden images, candidates
above a score of 0.05.
"""

import statistics
import tempfile
import time
from pathlib import Path

import onnx
from bundle_forms import read_arguments, with_graph_in

from clq_export.stored import store_float16
from clq_serve.bundle import MODEL_FILE, Bundle
from clq_serve.compare import candidate_difference
from clq_serve.engine import OnnxEngine
from clq_serve.golden import read_golden
from clq_train.stored_kernels import as_float32

FORMS = ("float32", "float16")


def main() -> None:
    asked = read_arguments(__doc__.splitlines()[0], repeats=9)
    loads: dict[str, list[float]] = {form: [] for form in FORMS}
    runs: dict[str, list[float]] = {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as folder:
        bundles = {form: with_kernels(asked.bundle, form, Path(folder) / form) for form in FORMS}
        for turn in range(asked.repeats + 1):  # the first warms up
            engines = {}
            for form, one in bundles.items():
                start = time.process_time()
                engines[form] = OnnxEngine(one, asked.threads)
                loads[form] += [time.process_time() - start] if turn else []
                engines[form].run(asked.batch)
            for form, engine in engines.items():
                start = time.process_time()
                engine.run(asked.batch)
                runs[form] += [time.process_time() - start] if turn else []
        differences = [
            candidate_difference(*(engines[form].run(images) for form in FORMS), 0.05)
            for images, _ in read_golden(asked.bundle)
        ]
    print(f"{asked}, {asked.repeats} by turns")
    print(f"{'kernels':8s} {'MB':>6s} {'load ms':>15s} {'ratio':>6s} {'run ms':>15s} {'ratio':>6s}")
    for form, one in bundles.items():
        row = f"{form:8s} {one.manifest.files[MODEL_FILE].bytes / 1e6:6.2f}"
        for times in (loads, runs):
            middle, least = statistics.median(times[form]), min(times[form])
            text = f"{1e3 * middle:.1f} ({1e3 * least:.1f})"
            row += f" {text:>15s} {least / min(times['float32']):6.2f}"
        print(row)
    scores, boxes = zip(*differences, strict=True)
    print(f"scores within {max(scores):.1e}, boxes within {max(boxes):.2g} px")


def with_kernels(bundle: Bundle, form: str, place: Path) -> Bundle:
    """The bundle with its kernels stored in that form, its graph in the folder `place`."""
    graph = as_float32(onnx.load(bundle.model_path))
    if form == "float16":
        store_float16(graph)
    place.mkdir()
    onnx.save(graph, place / MODEL_FILE)
    return with_graph_in(bundle, place)


if __name__ == "__main__":
    main()
