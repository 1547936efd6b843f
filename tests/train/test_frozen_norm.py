"""A frozen norm inside its convolution: the same network, the same names, one node in export."""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from shapes_data import shapes_tree
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from clq_export.graph import write_graph
from clq_train.config import parse_config
from clq_train.detector import ClqDetector
from clq_train.evaluate import TorchEngine
from clq_train.frozen_norm import AbsorbedNorm, absorb_norms
from clq_train.import_bundle import _Graph, _norms, _scales


def block(norm):
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False),
        norm(8),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 8, 1, groups=2, bias=False), norm(8)),
    )


def shake(network):
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                value.normal_(std=0.3)
            elif value.dim() == 1:
                value.uniform_(0.5, 2.0)


def test_the_network_is_the_one_of_separate_norms():
    torch.manual_seed(0)
    plain, absorbed = block(FrozenBatchNorm2d), block(AbsorbedNorm)
    shake(plain)
    absorb_norms(absorbed)
    absorbed.load_state_dict(plain.state_dict())  # of the same names
    feature = torch.randn(2, 4, 9, 7)
    for network in (absorbed, copy.deepcopy(absorbed)):
        torch.testing.assert_close(network(feature), plain(feature))
    for network in (plain, absorbed):
        network(feature).square().sum().backward()
    gradients = [dict(network.named_parameters()) for network in (plain, absorbed)]
    assert len(gradients[0]) == 2
    for name, parameter in gradients[0].items():
        torch.testing.assert_close(gradients[1][name].grad, parameter.grad, rtol=1e-4, atol=1e-4)


def test_under_autocast_the_map_stays_in_half_precision():
    absorbed = block(AbsorbedNorm)
    absorb_norms(absorbed)
    with torch.autocast("cpu", torch.bfloat16):
        assert absorbed(torch.randn(1, 4, 8, 8)).dtype == torch.bfloat16


@pytest.mark.slow
def test_an_exported_frozen_backbone_is_folded_and_comes_back(tmp_path):
    tree = shapes_tree(Path("nowhere"))
    tree["model"]["backbone"] = {"name": "regnet_x_400mf", "frozen_norm": True}
    config = parse_config(tree, "test").model
    torch.manual_seed(0)
    model, other = ClqDetector(config, 2).eval(), ClqDetector(config, 2).eval()
    shake(model)
    write_graph(model, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    convs = [n for n in proto.graph.node if n.op_type == "Conv" and "backbone" in n.input[1]]
    assert convs
    assert all(len(node.input) == 3 for node in convs)  # with the norm's bias
    graph = _Graph(proto)
    images = np.random.default_rng(0).integers(0, 256, (1, 128, 192, 3), dtype=np.uint8)
    found = _norms(graph, other, [images]) | _scales(graph)
    tensors = {name: torch.tensor(value) for name, (_, value) in found.items()}
    weights = {n: v for n, v in model.state_dict().items() if n not in tensors}
    weights |= {
        name: torch.tensor(graph.values[f"model.{name}"])
        for name in weights
        if name.startswith("backbone.")
    }
    other.load_state_dict(weights | tensors)
    ours, theirs = (TorchEngine(each).run(images) for each in (other, model))
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
