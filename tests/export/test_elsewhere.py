"""What is written for other servers: a graph with suppression inside, a repository for Triton."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from PIL import Image
from typer.testing import CliRunner

from clq_export.cli import app
from clq_export.errors import ExportError
from clq_serve.bundle import builtin_bundle_path, load_bundle
from clq_serve.detector import DetectOptions, Detector
from clq_serve.engine import OnnxEngine
from clq_serve.errors import BundleError
from clq_serve.nms import ClassNms
from clq_serve.preprocess import plan, resize

SCREENS = sorted((Path(__file__).parents[1] / "data/screens").glob("*.png"))
OUTPUTS = ("boxes", "scores", "labels", "cls_scores", "qualities")


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def bundle():
    return load_bundle(builtin_bundle_path())


@pytest.fixture(scope="module")
def engine(bundle):
    return OnnxEngine(bundle, 2)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    path = tmp_path_factory.mktemp("end2end") / "whole.onnx"
    result = run("end2end", builtin_bundle_path(), path)
    assert result.exit_code == 0, result.output
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def assert_same(found, expected):
    assert len(found[1]) == len(expected.scores)
    for name, array in zip(OUTPUTS, found, strict=True):
        np.testing.assert_allclose(array, getattr(expected, name), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("path", SCREENS, ids=lambda path: path.stem)
def test_the_whole_graph_gives_the_boxes_of_the_service(session, engine, bundle, path):
    image = Image.open(path).convert("RGB")
    defaults = DetectOptions.from_thresholds(bundle.manifest.thresholds)
    rule = bundle.manifest.input.rule
    ((expected,), _) = Detector(engine, ClassNms(), rule).detect([np.asarray(image)], defaults)
    assert len(expected.scores) > 10
    geometry = plan(*image.size, rule)
    small = resize(np.asarray(image), geometry.resized_width, geometry.resized_height)
    boxes, *others = session.run(OUTPUTS, {"image": small})
    across, down = (old / new for old, new in zip(image.size, small.shape[1::-1], strict=True))
    assert_same([boxes * [across, down, across, down], *others], expected)


@pytest.mark.parametrize("size", [(1, 1), (63, 65), (64, 128), (333, 200)])
@pytest.mark.parametrize(("score", "iou", "count"), [(0.01, 0.3, 20), (0.05, 0.9, 300), (1, 0, 1)])
def test_thresholds_may_be_given_and_any_size_is_padded(
    session, engine, bundle, size, score, iou, count
):
    pixels = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8)
    as_it_is = replace(bundle.manifest.input.rule, largest_scale=None)
    detector = Detector(engine, ClassNms(), as_it_is)
    ((expected,), _) = detector.detect([pixels], DetectOptions(score, iou, count))
    feeds = {
        "image": pixels,
        "score": np.array(score, np.float32),
        "iou": np.array(iou, np.float32),
        "max": np.array(count, np.int64),
    }
    assert_same(session.run(OUTPUTS, feeds), expected)


def test_the_file_says_which_model_it_is(session, bundle):
    kept = session.get_modelmeta().custom_metadata_map
    assert kept["clq.model"] == f"{bundle.manifest.name}/{bundle.manifest.version}"
    assert kept["clq.digest"] == bundle.digest
    assert kept["clq.classes"].split(",") == bundle.manifest.class_names


def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path):
    result = run("end2end", builtin_bundle_path(), tmp_path / "none" / "whole.onnx")
    assert isinstance(result.exception, ExportError)
    assert "cannot be written: No such file or directory" in str(result.exception)


def model_config():
    """Triton's ModelConfig message, from tritonclient's wheel, without its gRPC."""
    package = importlib.util.find_spec("tritonclient")
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    result = run("triton-repo", builtin_bundle_path(), folder, "--max-batch", 4)
    assert result.exit_code == 0, result.output
    return folder


def test_tritons_own_schema_reads_the_configuration(repository, bundle):
    text = (repository / "webui-nano" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config())
    assert (config.name, config.backend, config.max_batch_size) == ("webui-nano", "onnxruntime", 4)
    (image,) = config.input
    assert (image.name, list(image.dims)) == ("images", [-1, -1, 3])
    assert [output.name for output in config.output] == bundle.manifest.outputs.names
    assert config.output[2].label_filename == "labels.txt"
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert [warm_up.batch_size for warm_up in config.model_warmup] == [1, 4]
    multiple = bundle.manifest.input.pad.multiple
    for warm_up in config.model_warmup:
        assert all(side % multiple == 0 for side in warm_up.inputs["images"].dims[:2])


def test_the_configuration_describes_the_graph_that_lies_beside_it(repository, bundle):
    folder = repository / "webui-nano"
    assert (folder / "1" / "model.onnx").read_bytes() == bundle.model_path.read_bytes()
    assert (folder / "labels.txt").read_text().split("\n")[:-1] == bundle.manifest.class_names
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config())
    session = onnxruntime.InferenceSession(
        folder / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    kinds = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
    names = config.output[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    for output, node in zip(config.output, session.get_outputs(), strict=True):
        assert output.name == node.name
        assert names[output.data_type].name == kinds[node.type]
        assert list(output.dims) == node.shape[1:]


def test_a_model_that_is_there_is_not_replaced(repository):
    result = run("triton-repo", builtin_bundle_path(), repository)
    assert isinstance(result.exception, ExportError)
    assert "exists already" in str(result.exception)


def test_a_folder_that_is_no_bundle_is_refused_and_nothing_is_left(tmp_path):
    result = run("triton-repo", tmp_path / "none", tmp_path / "repository")
    assert isinstance(result.exception, BundleError)
    assert not (tmp_path / "repository").exists()
