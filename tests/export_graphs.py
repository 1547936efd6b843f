"""Bundles whose graph was changed, for tests of what looks at graphs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx

from clq_serve.bundle import describe_file, read_manifest, write_manifest


def rebuilt(bundle: Path, out: Path, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Path:
    """A copy of the bundle below `out`, whose manifest lists the changed graph."""
    folder = out / bundle.parent.name / bundle.name
    shutil.copytree(bundle, folder)
    path = folder / "model.onnx"
    onnx.save(change(onnx.load(path)), path)
    manifest = read_manifest(folder / "manifest.json")
    files = manifest.files | {"model.onnx": describe_file(path)}
    write_manifest(manifest.model_copy(update={"files": files}), folder)
    return folder
