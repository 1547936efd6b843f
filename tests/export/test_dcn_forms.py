"""The three forms of the deformable convolution: valid ONNX, and all equal to torch."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from shapes_data import shapes_tree

from clq_export.dcn_forms import with_dcn
from clq_export.errors import ExportError
from clq_export.graph import OUTPUTS, write_graph
from clq_export.parity import MAX_BOX_PX, MAX_SCORE, difference
from clq_serve.candidates import Candidates
from clq_train.config import parse_config
from clq_train.dcn import deform_conv3x3_by_rows
from clq_train.detector import ClqDetector
from clq_train.evaluate import TorchEngine

FORMS = ("standard", "plugin", "taps")


def one_node(*, channels=3, out=2, attributes=None) -> onnx.ModelProto:
    """A graph of one DeformConv with weights as inputs."""
    shapes = {
        "x": ["N", channels, "H", "W"],
        "weight": [out, channels, 3, 3],
        "offset": ["N", 18, "H", "W"],
        "bias": [out],
    }
    attributes = {"pads": [1, 1, 1, 1]} | (attributes or {})
    node = helper.make_node("DeformConv", [*shapes], ["y"], "the_node", **attributes)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", out, "H", "W"])
    graph = helper.make_graph([node], "one", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.fixture(scope="module")
def sessions():
    made = {}
    for form in FORMS:
        model = with_dcn(one_node(), form)
        onnx.checker.check_model(model, full_check=True)
        made[form] = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
    return made


@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    reach=st.sampled_from([0.0, 0.5, 3.0, 50.0]),
)
@settings(max_examples=40, deadline=None)
def test_all_forms_give_what_torch_gives(sessions, seed, batch, height, width, reach):
    """One-cell maps, odd sizes and offsets far outside the map included."""
    rng = np.random.default_rng(seed)
    arrays = {
        "x": rng.normal(size=(batch, 3, height, width)),
        "weight": rng.normal(size=(2, 3, 3, 3)),
        "offset": reach * rng.normal(size=(batch, 18, height, width)),
        "bias": rng.normal(size=2),
    }
    feeds = {name: array.astype(np.float32) for name, array in arrays.items()}
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    expected = deform_conv3x3_by_rows(
        tensors["x"], tensors["offset"], tensors["weight"], tensors["bias"]
    ).numpy()
    for form, session in sessions.items():
        (found,) = session.run(None, feeds)
        np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=form)


@pytest.mark.parametrize("form", ["plugin", "taps"])
@pytest.mark.slow
def test_the_whole_model_in_another_form_gives_what_torch_gives(form, shapes_folder, tmp_path):
    torch.manual_seed(0)
    model = ClqDetector(parse_config(shapes_tree(shapes_folder), "test").model, 2).eval()
    path = tmp_path / "model.onnx"
    write_graph(model, path, form)
    graph = onnx.load(path)
    assert all(node.op_type != "DeformConv" for node in graph.graph.node)
    used = {(node.domain, node.op_type) for node in graph.graph.node if node.domain}
    assert used == ({("clq", "DeformConv2d")} if form == "plugin" else set())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(0).integers(0, 256, (2, 192, 320, 3), dtype=np.uint8)
    found = Candidates(*session.run(list(OUTPUTS), {"images": batch}))
    score, box_px = difference(found, TorchEngine(model).run(batch))
    assert score <= MAX_SCORE
    assert box_px <= MAX_BOX_PX


def test_the_plugin_form_names_the_plugin_as_tensorrt_looks_it_up():
    model = with_dcn(one_node(), "plugin")
    (node,) = model.graph.node
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    assert attributes == {"plugin_namespace": b"clq", "plugin_version": b"1", "aot": 1}
    (function,) = model.functions
    assert (function.domain, function.name) == ("clq", "DeformConv2d")
    assert [inner.op_type for inner in function.node] == ["DeformConv"]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"strides": [2, 2]}, r"the_node: strides is \[2, 2\]"),
        ({"dilations": [2, 2]}, r"the_node: dilations is \[2, 2\]"),
        ({"offset_group": 2}, "the_node: offset_group is 2"),
        ({"pads": [0, 0, 0, 0]}, r"the_node: pads is \[0, 0, 0, 0\]"),
    ],
)
def test_a_deformable_convolution_that_is_not_clqs_is_refused(attributes, message):
    with pytest.raises(ExportError, match=message):
        with_dcn(one_node(attributes=attributes), "taps")


def test_one_without_a_bias_is_refused():
    model = one_node()
    model.graph.node[0].input.pop()
    with pytest.raises(ExportError, match="take x, weight, offset and bias"):
        with_dcn(model, "plugin")
