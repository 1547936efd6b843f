"""The engine computes what the graph says and refuses what breaks the contract."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clq_serve.bundle import describe_file, load_bundle, write_manifest
from clq_serve.candidates import Candidates
from clq_serve.compare import candidate_difference
from clq_serve.engine import OnnxEngine
from clq_serve.errors import BundleError, EngineError
from clq_serve.golden import check_golden
from clq_serve.loading import load_model
from clq_serve.settings import Settings


def describe_again(folder: Path) -> None:
    """Makes the manifest agree with the files, whatever they hold now."""
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    for name in tree["files"]:
        tree["files"][name] = json.loads(describe_file(folder / name).model_dump_json())
    path.write_text(json.dumps(tree))


def rewrite_model(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, folder / "model.onnx")
    describe_again(folder)


def rewrite_golden(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    with np.load(folder / "golden.npz") as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(folder / "golden.npz", **arrays)
    describe_again(folder)


def engine_of(folder: Path) -> OnnxEngine:
    return OnnxEngine(load_bundle(folder), threads=1)


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 128, 64), (2, 192, 192)])
def test_the_engine_computes_the_reference(
    shape: tuple[int, int, int], tiny_bundle: Path, tiny_reference: Callable[..., Candidates]
) -> None:
    batch = np.random.default_rng(5).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = engine_of(tiny_bundle).run(batch)
    assert [array.dtype for array in found] == [np.float32, np.float32, np.int64] + [np.float32] * 2
    assert (np.diff(found.scores) <= 0).all()
    score, box_px = candidate_difference(found, tiny_reference(batch), 0.0, margin=1e-4)
    assert score < 1e-5
    assert box_px < 1e-3


def test_a_batch_gives_what_each_image_gives_alone(tiny_bundle: Path) -> None:
    engine = engine_of(tiny_bundle)
    batch = np.random.default_rng(6).integers(0, 256, (4, 128, 64, 3), dtype=np.uint8)
    together = engine.run(batch)
    for index in range(4):
        for a, b in zip(together, engine.run(batch[index : index + 1]), strict=True):
            assert np.array_equal(a[index], b[0])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), "float32"),
        (np.zeros((64, 64, 3), np.uint8), r"\(N, H, W, 3\)"),
        (np.zeros((1, 3, 64, 64), np.uint8), r"\(N, H, W, 3\)"),
        (np.zeros((0, 64, 64, 3), np.uint8), r"\(N, H, W, 3\)"),
        (np.zeros((1, 64, 65, 3), np.uint8), "65 x 64 pixels; accepted: multiples of 64"),
    ],
)
def test_another_input_is_refused(batch: np.ndarray, message: str, tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match=message):
        engine_of(tiny_bundle).run(batch)


def test_a_result_that_is_not_finite_is_an_error(bundle_copy: Path) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        side = next(item for item in model.graph.initializer if item.name == "c32")
        side.CopyFrom(numpy_helper.from_array(np.array(np.nan, np.float32), "c32"))

    rewrite_model(bundle_copy, spoil)
    with pytest.raises(EngineError, match="output 'boxes' of the model has values that are not"):
        engine_of(bundle_copy).run(np.zeros((1, 64, 64, 3), np.uint8))


def test_zero_threads_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match="threads is 0"):
        OnnxEngine(load_bundle(tiny_bundle), threads=0)


def _rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[1].name = "confidences"
    for node in model.graph.node:
        node.output[:] = ["confidences" if o == "scores" else o for o in node.output]


def _labels_as_int32(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.output[:] = ["wide" if o == "labels" else o for o in node.output]
    model.graph.node.append(helper.make_node("Cast", ["wide"], ["labels"], to=TensorProto.INT32))
    model.graph.output[2].type.tensor_type.elem_type = TensorProto.INT32


def _rank_unknown_count(model: onnx.ModelProto) -> None:
    model.graph.output[1].CopyFrom(
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", "K", 1])
    )
    for node in model.graph.node:
        node.output[:] = ["flat" if o == "scores" else o for o in node.output]
    model.graph.node.append(helper.make_node("Unsqueeze", ["flat", "minus1"], ["scores"]))
    model.graph.initializer.append(helper.make_tensor("minus1", TensorProto.INT64, [1], [-1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename_output, "confidences"),
        (_labels_as_int32, r"output 'labels' is tensor\(int32\); accepted: tensor\(int64\)"),
        (_rank_unknown_count, "output 'scores' has shape"),
        (lambda m: m.graph.node.pop(), "ONNX Runtime cannot load it"),
    ],
)
def test_a_graph_that_differs_from_the_manifest_is_refused(
    change: Callable[[onnx.ModelProto], object], message: str, bundle_copy: Path
) -> None:
    rewrite_model(bundle_copy, change)
    with pytest.raises(BundleError, match=message):
        engine_of(bundle_copy)


def test_another_count_than_the_manifest_says_is_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "manifest.json"
    path.write_text(path.read_text().replace('"count": 40', '"count": 50'))
    with pytest.raises(BundleError, match=r"has shape .*40.*; accepted: .*50"):
        engine_of(bundle_copy)


def test_a_file_that_is_no_graph_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "model.onnx").write_bytes(b"not a graph")
    describe_again(bundle_copy)
    with pytest.raises(BundleError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        engine_of(bundle_copy)


def test_golden_results_are_reproduced(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert check_golden(OnnxEngine(bundle, threads=1), bundle) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda g: g["scores_1"].__iadd__(0.002),
        lambda g: g["boxes_0"].__iadd__(0.2),
        lambda g: g["labels_0"].__iadd__(1),
        lambda g: g["cls_scores_0"].__imul__(0.5),
        lambda g: g["qualities_0"].__imul__(0.5),
    ],
)
def test_other_golden_results_are_refused(
    change: Callable[[dict[str, np.ndarray]], object], bundle_copy: Path
) -> None:
    rewrite_golden(bundle_copy, change)
    with pytest.raises(BundleError, match="this machine computes other results"):
        load_model(Settings(threads=1), bundle_copy)


@pytest.mark.parametrize(
    ("precision", "change", "served"),
    [
        ("int8 for onnxruntime", lambda g: g["scores_1"].__iadd__(0.02), True),
        ("int8 for onnxruntime", lambda g: g["boxes_0"].__iadd__(1.5), True),
        ("int8 for onnxruntime", lambda g: g["scores_1"].__iadd__(0.06), False),
        ("int8 for onnxruntime", lambda g: g["boxes_0"].__iadd__(2.5), False),
        ("float16", lambda g: g["scores_1"].__iadd__(0.02), False),
    ],
)
def test_8_bits_may_round_otherwise_on_another_processor_and_floats_may_not(
    precision: str,
    change: Callable[[dict[str, np.ndarray]], object],
    served: bool,
    bundle_copy: Path,
) -> None:
    rewrite_golden(bundle_copy, change)
    manifest = load_bundle(bundle_copy).manifest
    created = manifest.created | {"precision": precision}
    write_manifest(manifest.model_copy(update={"created": created}), bundle_copy)
    if served:
        assert load_model(Settings(threads=1), bundle_copy).golden_examples == 2
    else:
        with pytest.raises(BundleError, match="this machine computes other results"):
            load_model(Settings(threads=1), bundle_copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda g: g.pop("labels_1"),
        lambda g: g.clear(),
        lambda g: g.update(more=np.zeros(1)),
    ],
)
def test_a_golden_file_with_other_keys_is_refused(
    change: Callable[[dict[str, np.ndarray]], object], bundle_copy: Path
) -> None:
    rewrite_golden(bundle_copy, change)
    with pytest.raises(BundleError, match=r"golden\.npz: holds"):
        check_golden(engine_of(bundle_copy), load_bundle(bundle_copy))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip", b"text"])
def test_a_golden_file_that_is_no_archive_is_refused(data: bytes, bundle_copy: Path) -> None:
    (bundle_copy / "golden.npz").write_bytes(data)
    describe_again(bundle_copy)
    with pytest.raises(BundleError, match=r"golden\.npz: is not a readable \.npz"):
        check_golden(engine_of(bundle_copy), load_bundle(bundle_copy))


def test_pickled_golden_arrays_are_refused(bundle_copy: Path) -> None:
    rewrite_golden(bundle_copy, lambda g: g.update(images_0=np.array([{}], object)))
    with pytest.raises(BundleError, match="not a readable"):
        check_golden(engine_of(bundle_copy), load_bundle(bundle_copy))
