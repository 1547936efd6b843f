"""What the benchmarks share that hold forms of one bundle's graph against each other."""

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime

from clq_serve.bundle import MODEL_FILE, Bundle, builtin_bundle_path, describe_file, load_bundle
from clq_serve.preprocess import Pixels


@dataclass(frozen=True, slots=True)
class Asked:
    """The arguments of such a benchmark; `batch` is one random image (1, H, W, 3)."""

    bundle: Bundle
    batch: Pixels
    threads: int
    repeats: int

    def __str__(self) -> str:
        manifest, (_, height, width, _) = self.bundle.manifest, self.batch.shape
        return (
            f"{manifest.name}/{manifest.version}, {width} x {height}, {self.threads} threads, "
            f"ONNX Runtime {onnxruntime.__version__}"
        )


def read_arguments(description: str, repeats: int) -> Asked:
    """The command line: [BUNDLE] --repeats --threads --size W H."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("bundle", type=Path, nargs="?", help="[default: the built-in model]")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 832), metavar=("W", "H"))
    given = parser.parse_args()
    width, height = given.size
    batch = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    bundle = load_bundle(given.bundle or builtin_bundle_path())
    return Asked(bundle, batch, given.threads, given.repeats)


def with_graph_in(bundle: Bundle, place: Path) -> Bundle:
    """The bundle with the graph that the folder `place` holds; nothing is written."""
    files = bundle.manifest.files | {MODEL_FILE: describe_file(place / MODEL_FILE)}
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"files": files}), path=place)
