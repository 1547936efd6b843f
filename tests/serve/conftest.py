"""Fixtures: a real bundle with a tiny detector, made without torch, and real servers.

The model averages cells of 32 x 32 pixels.  Each cell is one candidate whose box is the cell
itself; its class is the strongest colour channel, its cls_score that channel's mean, its quality
the darkness of the weakest channel.  So a red square of 32 px on a grid cell is one "red"
detection of score 1.
"""

import contextlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import uvicorn
from onnx import TensorProto, helper, numpy_helper

from clq_serve.app import create_app
from clq_serve.bundle import Manifest, describe_file, write_manifest
from clq_serve.candidates import Candidates
from clq_serve.loading import LoadedModel, load_model
from clq_serve.models import ModelStore
from clq_serve.settings import Settings

CELL_PX = 32
COUNT = 40
ALPHA = 0.5
CLASSES = ("red", "green", "blue")
OUTPUTS = ("boxes", "scores", "labels", "cls_scores", "qualities")


StartServer = Callable[..., str]


class AddBundle:
    """Puts bundles into a folder of models."""

    def __init__(self, root: Path, source: Path) -> None:
        root.mkdir()
        self.root = root
        self._source = source

    def __call__(self, name: str, version: int, mark: str = "") -> Path:
        return add_bundle(self.root, self._source, name, version, mark)

    def spoil(self, folder: Path) -> None:
        """Gives the bundle golden results that no machine reproduces; its digests are right."""
        with np.load(folder / "golden.npz") as archive:
            arrays = dict(archive)
        arrays["scores_0"] = arrays["scores_0"] * 0.5
        np.savez(folder / "golden.npz", **arrays)
        path = folder / "manifest.json"
        tree = json.loads(path.read_text())
        entry = describe_file(folder / "golden.npz").model_dump_json()
        tree["files"]["golden.npz"] = json.loads(entry)
        path.write_text(json.dumps(tree))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a good bundle; do not change it."""
    return build_tiny_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A good bundle of the test's own, to be damaged."""
    return shutil.copytree(tiny_bundle, tmp_path / "tiny" / "1")


@pytest.fixture
def repository(tiny_bundle: Path, tmp_path: Path) -> AddBundle:
    """repository(name, version, mark="") -> folder of a new bundle in `repository.root`."""
    return AddBundle(tmp_path / "models", tiny_bundle)


@pytest.fixture(scope="session")
def tiny_model_loaded(tiny_bundle: Path) -> LoadedModel:
    return load_model(Settings(threads=1), tiny_bundle)


@pytest.fixture(scope="session")
def tiny_reference() -> Callable[[np.ndarray], Candidates]:
    """What the tiny model computes, as plain loops."""
    return reference


@pytest.fixture
def start_server(tiny_bundle: Path) -> Iterator[StartServer]:
    """start_server(model=None, **settings) -> base URL of a real server on a free port."""
    with contextlib.ExitStack() as stack:

        def start(model: LoadedModel | None = None, **settings: object) -> str:
            values = Settings.model_validate({"bundle": tiny_bundle, "threads": 1} | settings)
            return stack.enter_context(running(values, model))

        yield start


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[str]:
    """Base URL of a server with default settings, shared by the tests of a file."""
    with running(Settings(bundle=tiny_bundle, threads=1), None) as url:
        yield url


@pytest.fixture(scope="module")
def builtin_server() -> Iterator[str]:
    """Base URL of a server with the built-in model, shared by the tests of a file."""
    with running(Settings(), None) as url:
        yield url


@contextlib.contextmanager
def running(settings: Settings, model: LoadedModel | None) -> Iterator[str]:
    """uvicorn with the real application in a thread."""
    config = uvicorn.Config(
        create_app(settings, None if model is None else ModelStore([model])),
        log_config=None,
        lifespan="on",
    )
    uvicorn_server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 60
        while not uvicorn_server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert uvicorn_server.started
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            uvicorn_server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def manifest_tree(folder: Path, name: str = "tiny", version: int = 1) -> dict:
    """The manifest of the bundle in `folder` as plain JSON values."""
    return {
        "format": "clq-bundle",
        "format_version": 1,
        "name": name,
        "version": version,
        "classes": [{"name": c, "category_id": 10 * (i + 1)} for i, c in enumerate(CLASSES)],
        "input": {
            "name": "images",
            "dtype": "uint8",
            "layout": "NHWC",
            "color": "RGB",
            "resize": {"shorter_px": 96, "longer_px": 192, "upscale": False, "filter": "bilinear"},
            "pad": {"multiple": 64, "value": [0, 0, 0]},
            "background": [255, 255, 255],
        },
        "outputs": {**{o: o for o in OUTPUTS}, "count": COUNT},
        "thresholds": {"score": 0.3, "iou": 0.6, "max": 100},
        "alpha": ALPHA,
        "files": {
            item: json.loads(describe_file(folder / item).model_dump_json())
            for item in ("model.onnx", "golden.npz")
        },
        "trained_on": "nothing: the graph is written by hand",
        "metrics": [],
        "licence": "Apache-2.0",
        "created": {"by": "tests/serve/conftest.py"},
    }


def build_tiny_bundle(parent: Path) -> Path:
    """The folder of a complete bundle, `parent`/tiny/1."""
    folder = parent / "tiny" / "1"
    folder.mkdir(parents=True)
    onnx.save(tiny_model(), folder / "model.onnx")
    rng = np.random.default_rng(0)
    golden: dict[str, np.ndarray] = {}
    for index, (height, width) in enumerate([(64, 128), (192, 192)]):
        images = rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        images[0, :32, 32:64] = (250, 5, 10)
        golden[f"images_{index}"] = images
        for field, array in zip(OUTPUTS, reference(images), strict=True):
            golden[f"{field}_{index}"] = array
    np.savez(folder / "golden.npz", **golden)
    text = json.dumps(manifest_tree(folder))
    write_manifest(Manifest.model_validate_json(text), folder)
    return folder


def add_bundle(root: Path, source: Path, name: str, version: int, mark: str = "") -> Path:
    """A copy of the tiny bundle as `root`/NAME/VERSION, renamed into place when it is complete.

    mark  goes into the graph's description, so that its digest is another, and before each class
    """
    beside = shutil.copytree(source, root / f".{name}-{version}")
    model = onnx.load(beside / "model.onnx")
    model.doc_string = mark
    onnx.save(model, beside / "model.onnx")
    tree = manifest_tree(beside, name, version)
    for entry in tree["classes"]:
        entry["name"] = mark + entry["name"]
    write_manifest(Manifest.model_validate_json(json.dumps(tree)), beside)
    target = root / name / str(version)
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    return beside.rename(target)


def reference(images: np.ndarray) -> Candidates:
    """What the graph computes, as plain loops; (N, H, W, 3) uint8 -> Candidates."""
    rows: list[list[tuple[list[float], float, int, float, float]]] = []
    for image in images.astype(np.float64) / 255:
        row = []
        for top in range(0, image.shape[0], CELL_PX):
            for left in range(0, image.shape[1], CELL_PX):
                mean = image[top : top + CELL_PX, left : left + CELL_PX].mean((0, 1))
                box = [float(left), float(top), float(left + CELL_PX), float(top + CELL_PX)]
                cls_score, quality = float(mean.max()), float(1 - mean.min())
                score = cls_score * quality**ALPHA
                row.append((box, score, int(mean.argmax()), cls_score, quality))
        row.sort(key=lambda candidate: -candidate[1])
        empty = ([0.0] * 4, 0.0, 0, 0.0, 0.0)
        rows.append((row + [empty] * COUNT)[:COUNT])
    types = (np.float32, np.float32, np.int64, np.float32, np.float32)
    return Candidates(
        *(np.array([[c[i] for c in row] for row in rows], t) for i, t in enumerate(types))
    )


def tiny_model() -> onnx.ModelProto:
    """The graph: images uint8 (N, H, W, 3) -> the five outputs of the contract."""
    k = COUNT
    nodes = [
        # 1. (N, H, W, 3) uint8 -> (N, 3, h, w) mean of each cell in [0, 1]
        ("Cast", ["images"], ["f"], {"to": TensorProto.FLOAT}),
        ("Transpose", ["f"], ["nchw"], {"perm": [0, 3, 1, 2]}),
        ("Div", ["nchw", "c255"], ["unit"], {}),
        ("AveragePool", ["unit"], ["cells"], {"kernel_shape": [32, 32], "strides": [32, 32]}),
        # 2. class, class score and quality of each cell, (N, h * w)
        ("ReduceMax", ["cells", "axis1"], ["max"], {"keepdims": 0}),
        ("ReduceMin", ["cells", "axis1"], ["min"], {"keepdims": 0}),
        ("ArgMax", ["cells"], ["argmax"], {"axis": 1, "keepdims": 0}),
        ("Flatten", ["max"], ["cls_flat"], {"axis": 1}),
        ("Flatten", ["min"], ["min_flat"], {"axis": 1}),
        ("Flatten", ["argmax"], ["label_flat"], {"axis": 1}),
        ("Sub", ["one", "min_flat"], ["quality_flat"], {}),
        ("Pow", ["quality_flat", "alpha"], ["root"], {}),
        ("Mul", ["cls_flat", "root"], ["score_flat"], {}),
        # 3. the box of each cell, (N, h * w, 4): x from the place in the row, y from the row
        ("Shape", ["max"], ["nhw"], {}),
        ("Gather", ["nhw", "i2"], ["w"], {}),
        ("Shape", ["score_flat"], ["na"], {}),
        ("Gather", ["na", "i1"], ["a"], {}),
        ("Range", ["i0", "a", "i1"], ["place"], {}),
        ("Mod", ["place", "w"], ["column"], {}),
        ("Div", ["place", "w"], ["row"], {}),
        ("Add", ["column", "i1"], ["column1"], {}),
        ("Add", ["row", "i1"], ["row1"], {}),
        *[
            ("Unsqueeze", [name, "last"], [f"{name}_u"], {})
            for name in ("column", "row", "column1", "row1")
        ],
        ("Concat", ["column_u", "row_u", "column1_u", "row1_u"], ["grid"], {"axis": 1}),
        ("Cast", ["grid"], ["grid_f"], {"to": TensorProto.FLOAT}),
        ("Mul", ["grid_f", "c32"], ["box_flat"], {}),
        # 4. always K slots: pad with K empty ones, then the K best
        ("Pad", ["score_flat", "pad2"], ["score_pad"], {}),
        ("Pad", ["cls_flat", "pad2"], ["cls_pad"], {}),
        ("Pad", ["quality_flat", "pad2"], ["quality_pad"], {}),
        ("Pad", ["label_flat", "pad2"], ["label_pad"], {}),
        ("Pad", ["box_flat", "pad2_rows"], ["box_pad"], {}),
        ("TopK", ["score_pad", "k"], ["scores", "best"], {"axis": 1}),
        ("GatherElements", ["cls_pad", "best"], ["cls_scores"], {"axis": 1}),
        ("GatherElements", ["quality_pad", "best"], ["qualities"], {"axis": 1}),
        ("GatherElements", ["label_pad", "best"], ["labels"], {"axis": 1}),
        ("Gather", ["box_pad", "best"], ["boxes"], {"axis": 0}),
    ]
    constants = {
        "c255": np.array(255, np.float32),
        "c32": np.array(CELL_PX, np.float32),
        "one": np.array(1, np.float32),
        "alpha": np.array(ALPHA, np.float32),
        "axis1": np.array([1], np.int64),
        "last": np.array([1], np.int64),
        "i0": np.array(0, np.int64),
        "i1": np.array(1, np.int64),
        "i2": np.array(2, np.int64),
        "k": np.array([k], np.int64),
        "pad2": np.array([0, 0, 0, k], np.int64),
        "pad2_rows": np.array([0, 0, k, 0], np.int64),
    }
    shapes = {
        "boxes": (TensorProto.FLOAT, ["N", k, 4]),
        "scores": (TensorProto.FLOAT, ["N", k]),
        "labels": (TensorProto.INT64, ["N", k]),
        "cls_scores": (TensorProto.FLOAT, ["N", k]),
        "qualities": (TensorProto.FLOAT, ["N", k]),
    }
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info(name, *shapes[name]) for name in OUTPUTS],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model
