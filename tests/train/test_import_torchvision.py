"""ImageNet classifiers of torchvision become backbones; another network is refused."""

import socket

import pytest
import torch
from safetensors.torch import save_file
from shapes_data import shapes_tree
from torchvision.models import regnet_x_400mf, resnet50
from typer.testing import CliRunner

from clq_train.cli import app
from clq_train.config import dump_config, parse_config
from clq_train.detector import ClqDetector
from clq_train.errors import CheckpointError
from clq_train.import_torchvision import read_torchvision
from clq_train.init_weights import load_init


def config_of(tmp_path, backbone):
    tree = shapes_tree(tmp_path)
    tree["model"]["backbone"] = {"name": backbone, "frozen_norm": True}
    return parse_config(tree, "test")


@pytest.mark.parametrize(
    ("network", "ending"),
    [
        (regnet_x_400mf, "safetensors"),
        pytest.param(resnet50, "pth", marks=pytest.mark.slow),
    ],
)
def test_the_imported_backbone_gives_the_classifiers_maps(tmp_path, network, ending):
    classifier = network(weights=None).eval()
    file, out = tmp_path / f"imagenet.{ending}", tmp_path / "start.safetensors"
    (torch.save if ending == "pth" else save_file)(classifier.state_dict(), file)
    config = config_of(tmp_path, network.__name__)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    command = ["import", file, "--from", "torchvision", "--config", tmp_path / "run.yaml"]
    arguments = [*map(str, command), "--out", str(out)]
    text = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "  fc.weight: no counterpart in the detector" in text
    assert "  neck.lateral: 6 of 6 tensors" in text
    assert "  backbone" not in text.partition("at its start value")[2]

    model = ClqDetector(config.model, 2).eval()
    load_init(model, out)
    seen = []
    last = classifier.layer4 if network is resnet50 else classifier.trunk_output
    last.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.inference_mode():
        pixels = torch.randn(1, 3, 64, 64)
        classifier(pixels)
        torch.testing.assert_close(model.backbone(pixels)[-1], seen[0], rtol=1e-4, atol=1e-4)


def test_weights_of_another_network_are_refused(tmp_path):
    model = ClqDetector(config_of(tmp_path, "regnet_x_400mf").model, 2)
    file = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    with pytest.raises(
        CheckpointError, match=r"other\.pth: not the weights of regnet_x_400mf: bac"
    ):
        read_torchvision(file, model)


def test_without_a_network_a_download_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    model = ClqDetector(config_of(tmp_path, "regnet_x_400mf").model, 2)
    with pytest.raises(CheckpointError, match=r"https://.*\.pth: .*; download it where there is a"):
        read_torchvision(None, model)
    nano = ClqDetector(parse_config(shapes_tree(tmp_path), "test").model, 2)
    with pytest.raises(
        CheckpointError, match="torchvision has no weights for the backbone regnet_n"
    ):
        read_torchvision(None, nano)


def no_network(*_: object) -> None:
    raise socket.gaierror("no network in this test")
