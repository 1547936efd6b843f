"""TensorRT's real Python bindings without TensorRT: empty libraries are enough for an import."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_STUB = """
void *createInferBuilder_INTERNAL(void *a, int b) { return 0; }
void *createInferRefitter_INTERNAL(void *a, void *b, int c) { return 0; }
void *createInferRuntime_INTERNAL(void *a, int b) { return 0; }
void *createNvOnnxParser_INTERNAL(void *a, void *b, int c) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *a, void *b, int c) { return 0; }
void *getPluginRegistry(void) { return 0; }
void *getBuilderPluginRegistry(int a) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void *a, const char *b) { return 1; }
"""


def tensorrt_folders() -> list[Path]:
    """The installed bindings, and those of unpacked wheels in CLQ_TENSORRT_BINDINGS."""
    places = [*sys.path, *os.environ.get("CLQ_TENSORRT_BINDINGS", "").split(os.pathsep)]
    return [
        Path(p) / "tensorrt_bindings"
        for p in places
        if p and (Path(p) / "tensorrt_bindings").is_dir()
    ]


def stub_libraries(folder: Path) -> Path:
    """`folder`, with the empty libraries of TensorRT 10 and 11 in it.  Skips without gcc."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    source = folder / "stub.c"
    source.write_text(_STUB)
    for library in ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin"):
        for major in (10, 11):
            target = folder / f"{library}.so.{major}"
            command = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{target.name}"]
            subprocess.run([*command, "-o", target, source], check=True)
    return folder


def stub_environment(bindings: Path, libraries: Path, link: Path) -> dict[str, str]:
    """Environment of a process that imports the folder `bindings` as tensorrt.

    link  a new folder that is put on PYTHONPATH before what is there
    """
    link.mkdir()
    (link / "tensorrt").symlink_to(bindings)
    paths = [str(link), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "LD_LIBRARY_PATH": str(libraries),
    }
