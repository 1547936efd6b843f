"""clq-export inspect: parts, parameters, multiply-adds and times of a graph."""

import json
import math

import onnx
import pytest
import torch
from export_graphs import rebuilt
from typer.testing import CliRunner

from clq_export.cli import app
from clq_export.dcn_forms import with_dcn
from clq_export.errors import ExportError
from clq_serve.bundle import builtin_bundle_path
from clq_serve.errors import BundleError
from clq_train.checkpoint import load_model

SIZE = (128, 192)


def inspect(bundle, *more):
    return CliRunner().invoke(app, ["inspect", str(bundle), "--repeats", "1", *map(str, more)])


def as_json(bundle):
    result = inspect(bundle, "--size", f"{SIZE[1]}x{SIZE[0]}", "--json")
    assert result.exit_code == 0, result.output + str(result.exception)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def found(bundle_folder):
    return as_json(bundle_folder)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint)[0].eval()


def counted_macs(model):
    """Multiply-adds by part, counted where torch computes them."""
    macs = dict.fromkeys(("backbone", "neck", "towers", "dcn"), 0)

    def count(part):
        def hook(module, inputs, output):
            kernel = math.prod(module.weight.shape[1:])
            macs[part] += output.shape.numel() * kernel

        return hook

    hooks = []
    for name, module in model.named_modules():
        part = name.partition(".")[0].replace("head", "towers")
        if name.startswith("head.align"):
            part = "dcn"
        is_align = name == "head.align"
        if isinstance(module, torch.nn.Conv2d) or is_align:
            hooks.append(module.register_forward_hook(count(part)))
    with torch.inference_mode():
        model(torch.zeros(1, *SIZE, 3, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return macs


def test_the_multiply_adds_of_each_part_are_those_that_torch_computes(found, model):
    expected = counted_macs(model)
    assert {name: found["parts"][name]["macs"] for name in expected} == expected
    assert found["parts"]["post"]["macs"] == 0


def test_the_parameters_of_each_part_are_the_model_s(found, model):
    parts = found["parts"]
    assert parts["neck"]["parameters"] == sum(p.numel() for p in model.neck.parameters())
    assert parts["dcn"]["parameters"] == sum(p.numel() for p in model.head.align.parameters())
    # Batch normalisation is in the backbone's weights: one bias a channel is left of it.
    convs = [m for m in model.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert parts["backbone"]["parameters"] == sum(c.weight.numel() + c.out_channels for c in convs)


def test_every_node_and_all_the_time_belong_to_a_part(found, bundle_folder):
    graph = onnx.load(bundle_folder / "model.onnx").graph
    assert sum(part["nodes"] for part in found["parts"].values()) == len(graph.node)
    assert found["kinds"]["DeformConv"] == 4
    assert sum(found["kinds"].values()) == len(graph.node)
    spent = sum(node["ms"] for node in found["nodes"])
    assert sum(part["ms"] for part in found["parts"].values()) == pytest.approx(spent)
    kinds = {node["kind"]: node["part"] for node in found["nodes"]}
    assert kinds["DeformConv"] == "dcn"
    assert kinds["TopK"] == "post"
    for part in ("input", "backbone", "neck", "towers", "dcn", "post"):
        assert found["parts"][part]["ms"] > 0, part


@pytest.mark.parametrize("form", ["plugin", "taps"])
def test_the_other_forms_have_the_same_multiply_adds_in_the_same_parts(
    found, bundle_folder, tmp_path, form
):
    other = as_json(rebuilt(bundle_folder, tmp_path, lambda graph: with_dcn(graph, form)))
    for name, part in found["parts"].items():
        assert other["parts"][name]["macs"] == part["macs"], name
        assert other["parts"][name]["parameters"] == part["parameters"], name
    kinds = {node["kind"]: node["part"] for node in other["nodes"]}
    assert kinds["DeformConv" if form == "plugin" else "GridSample"] == "dcn"


def test_the_table_names_what_the_bundle_takes_and_gives(bundle_folder):
    result = inspect(bundle_folder)
    assert result.exit_code == 0, result.output + str(result.exception)
    lines = result.output.splitlines()
    assert lines[0].startswith("shapes/1  float32, deformable convolution standard, opset 22")
    assert lines[1].split(maxsplit=2) == ["in", "images", "uint8 [N, H, W, 3]"]
    assert any(line.startswith("backbone ") for line in lines)
    assert sum(line.startswith("  out") for line in lines) == 5


@pytest.mark.parametrize("size", ["128", "0x0", "100x128", "128x100", "axb"])
def test_a_size_that_the_model_does_not_take_is_refused(size):
    result = inspect(builtin_bundle_path(), "--size", size)
    assert isinstance(result.exception, ExportError)
    assert "multiples of 64" in str(result.exception)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    assert isinstance(inspect(tmp_path).exception, BundleError)
