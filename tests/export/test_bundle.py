"""The exporter: what it writes, that it is the model, and what it refuses to keep."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from clq_export import bundle as bundle_module
from clq_export.cli import app
from clq_export.errors import ParityError
from clq_export.parity import MAX_BOX_PX, MAX_SCORE, check_parity, difference
from clq_serve.bundle import load_bundle
from clq_serve.candidates import Candidates
from clq_serve.detector import DetectOptions, Detector
from clq_serve.engine import OnnxEngine
from clq_serve.golden import read_golden
from clq_serve.nms import ClassNms
from clq_train.checkpoint import load_model
from clq_train.evaluate import TorchEngine


@pytest.fixture(scope="module")
def bundle(bundle_folder):
    return load_bundle(bundle_folder)


@pytest.fixture(scope="module")
def engine(bundle):
    return OnnxEngine(bundle, threads=2)


@pytest.fixture(scope="module")
def torch_engine(checkpoint):
    return TorchEngine(load_model(checkpoint)[0])


def export(*arguments):
    return CliRunner().invoke(app, ["onnx", *map(str, arguments)])


def test_the_graph_is_standard_onnx_with_dynamic_sizes(bundle):
    graph = onnx.load(bundle.model_path)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 22)]
    assert len(graph.functions) == 0
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("DeformConv") == 4  # one a level
    assert "NonMaxSuppression" not in kinds
    (images,) = graph.graph.input
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sides = [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim]
    assert sides == ["N", "H", "W", 3]


def test_the_outputs_have_one_fixed_size_and_every_topk_fits_tensorrt(bundle, checkpoint):
    graph = onnx.load(bundle.model_path).graph
    count = load_model(checkpoint)[1].model.candidates
    for value in graph.output:
        dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        assert dims == ["N", count, *([4] if value.name == "boxes" else [])]
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    counts = [int(constants[n.input[1]][0]) for n in graph.node if n.op_type == "TopK"]
    assert len(counts) == 9  # two a level and one of the image
    assert max(counts) <= 3840


def test_onnx_runtime_folds_every_norm_into_a_convolution(bundle, tmp_path):
    kinds = [node.op_type for node in onnx.load(bundle.model_path).graph.node]
    # Those of the backbone are folded in the file; folding those of the towers there would give
    # each level a copy of the weights that they share.
    assert kinds.count("BatchNormalization") == 8
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(bundle.model_path, options, providers=["CPUExecutionProvider"])
    optimised = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert "BatchNormalization" not in optimised
    assert len(optimised) < len(kinds)


def test_the_graph_holds_no_path_of_the_machine_that_wrote_it(bundle):
    data = bundle.model_path.read_bytes()
    for trace in (b".py", str(Path(__file__).parents[2]).encode(), b"stack_trace"):
        assert trace not in data


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 5), (7, 3)])
def test_the_graph_gives_what_torch_gives(engine, torch_engine, count, rows, cols):
    rng = np.random.default_rng(rows * 10 + cols)
    batch = rng.integers(0, 256, (count, 64 * rows, 64 * cols, 3), dtype=np.uint8)
    score, box_px = difference(engine.run(batch), torch_engine.run(batch))
    assert score <= MAX_SCORE
    assert box_px <= MAX_BOX_PX


def test_an_image_gets_the_same_boxes_alone_and_among_others(engine, bundle):
    detector = Detector(engine, ClassNms(), bundle.manifest.input.rule)
    options = DetectOptions(score=0.0, iou=0.6, max=50)
    rng = np.random.default_rng(3)
    sizes = [(100, 90), (128, 128), (70, 120), (40, 33), (128, 100)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    together, _ = detector.detect(images, options)
    for image, inside in zip(images, together, strict=True):
        ((alone,), _) = detector.detect([image], options)
        assert len(alone.scores) == len(inside.scores) > 0
        np.testing.assert_allclose(alone.scores, inside.scores, atol=1e-5)
        np.testing.assert_allclose(alone.boxes, inside.boxes, atol=1e-2)


def test_the_manifest_says_what_the_configuration_says(bundle, checkpoint):
    _, config = load_model(checkpoint)
    manifest = bundle.manifest
    assert (manifest.name, manifest.version) == ("shapes", 1)
    assert [(c.name, c.category_id) for c in manifest.classes] == [("red", 3), ("blue", 7)]
    assert manifest.input.pad.multiple == 64
    assert manifest.outputs.count == config.model.candidates
    assert manifest.alpha == config.model.head.alpha
    recorded = json.loads(manifest.created["config"])
    assert recorded["model"] == config.model.model_dump(mode="json")
    assert str(config.data.root) not in manifest.created["config"]
    (metric,) = manifest.metrics
    assert metric.images == 4
    assert "clq-train eval" in metric.command


def test_golden_outputs_are_torchs(bundle, torch_engine):
    examples = read_golden(bundle)
    assert len(examples) == 2
    for images, expected in examples:
        for found, stored in zip(torch_engine.run(images), expected, strict=True):
            np.testing.assert_array_equal(found, stored)


def test_an_export_that_differs_from_torch_leaves_nothing_behind(
    checkpoint, bundle_folder, tmp_path, monkeypatch
):
    """The graph of other weights: what a bug in the exporter would look like."""
    other = tmp_path / "other" / checkpoint.name
    shutil.copytree(checkpoint, other)
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    weights["head.cls.bias"] += 0.05
    save_file(weights, other / "model.safetensors")
    (other / "SHA256SUMS").unlink()
    monkeypatch.setattr(
        bundle_module,
        "write_graph",
        lambda model, path, dcn, weights: shutil.copy(bundle_folder / "model.onnx", path),
    )
    result = export(other, "--out", tmp_path / "models")
    assert isinstance(result.exception, ParityError)
    assert "differs from torch by" in str(result.exception)
    assert list((tmp_path / "models").iterdir()) == []


def test_parity_fails_when_a_batch_changes_an_image(engine, torch_engine):
    class Leaking:
        """An engine in which the first image of a batch shifts the others' boxes."""

        def run(self, batch):
            found = engine.run(batch)
            return Candidates(found.boxes + (len(batch) - 1) * 0.2, *found[1:])

    golden = [np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)]
    check_parity(engine, torch_engine, golden, 64)
    with pytest.raises(ParityError, match="in a batch"):
        check_parity(Leaking(), torch_engine, golden, 64)


def test_the_next_version_is_taken_and_an_existing_one_is_never_replaced(
    bundle_folder, checkpoint, tmp_path
):
    assert bundle_module.next_version(bundle_folder.parent) == 2
    before = json.loads((bundle_folder / "manifest.json").read_text())
    result = export(checkpoint, "--out", bundle_folder.parents[1], "--version", 1)
    assert "exists already" in str(result.exception)
    assert json.loads((bundle_folder / "manifest.json").read_text()) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"text", "not an image of an accepted format")],
)
def test_a_bad_golden_image_is_named(checkpoint, tmp_path, content, message):
    path = tmp_path / "golden.png"
    if content is not None:
        path.write_bytes(content)
    result = export(checkpoint, "--out", tmp_path / "models", "--golden", path)
    assert str(path) in str(result.exception)
    assert message in str(result.exception)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("qfl", "lqe", "align", "norm"),
    [
        (True, True, True, "group"),
        (True, False, False, "group"),
        (False, True, True, "batch"),
        (False, False, True, "batch"),
    ],
)
def test_other_heads_export_too(qfl, lqe, align, norm, shapes_folder, tmp_path):
    import onnxruntime
    import torch
    from shapes_data import shapes_tree

    from clq_export.graph import OUTPUTS, write_graph
    from clq_train.config import parse_config
    from clq_train.detector import ClqDetector

    tree = shapes_tree(shapes_folder)
    tree["model"]["head"] |= {"qfl": qfl, "lqe": lqe, "align": align, "norm": norm}
    torch.manual_seed(0)
    model = ClqDetector(parse_config(tree, "test").model, 2).eval()
    write_graph(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    batch = np.random.default_rng(0).integers(0, 256, (2, 192, 320, 3), dtype=np.uint8)
    found = Candidates(*session.run(list(OUTPUTS), {"images": batch}))
    score, box_px = difference(found, TorchEngine(model).run(batch))
    assert score <= MAX_SCORE
    assert box_px <= MAX_BOX_PX
