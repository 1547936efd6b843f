"""`init`: a run starts from a file's tensors, and a tensor that does not fit stops it."""

import logging

import pytest
import torch
from safetensors.torch import save_file
from shapes_data import shapes_tree, write_shapes

from clq_train.config import parse_config
from clq_train.detector import ClqDetector
from clq_train.errors import CheckpointError
from clq_train.fit import fit
from clq_train.init_weights import load_init
from clq_train.trainer import Trainer


@pytest.fixture
def tree(tmp_path):
    return shapes_tree(write_shapes(tmp_path / "data")) | {
        "init": str(tmp_path / "start.safetensors")
    }


def config_of(tree, **schedule):
    return parse_config(tree | {"schedule": tree["schedule"] | schedule}, "test")


def model_of(tree):
    return ClqDetector(config_of(tree).model, 2)


def test_a_run_starts_from_the_files_tensors_and_says_what_stayed(tree, tmp_path, caplog):
    start = {
        k: torch.randn_like(v)
        for k, v in model_of(tree).state_dict().items()
        if k.startswith("neck.")
    }
    save_file(start, tmp_path / "start.safetensors")
    with caplog.at_level(logging.INFO, "clq_train"):
        trainer = Trainer(config_of(tree))
    for name, value in start.items():
        assert torch.equal(trainer.model.state_dict()[name], value)
        assert torch.equal(trainer.average.weights[name], value)
    assert "start.safetensors: 14 of" in caplog.text
    assert "at its start value: head.cls: 2 of 2 tensors" in caplog.text
    assert "neck" not in caplog.text


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"neck.extra.0.bias": torch.zeros(3)},
            r"neck\.extra\.0\.bias: shape \[3\], the detector's is \[32\]",
        ),
        ({"neck.p3.bias": torch.zeros(3)}, r"neck\.p3\.bias: the detector has no such tensor"),
        ({}, "holds no tensor"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_taken(tree, tmp_path, tensors, message):
    file = tmp_path / "start.safetensors"
    save_file({"head.scales": torch.full((4,), 7.0)} | tensors if tensors else {}, file)
    model = model_of(tree)
    with pytest.raises(CheckpointError, match=rf"start\.safetensors: {message}"):
        load_init(model, file)
    assert model.head.scales.eq(1).all()


def test_a_file_that_is_missing_or_no_safetensors_is_named(tree, tmp_path):
    with pytest.raises(CheckpointError, match=r"start\.safetensors: .*No such file"):
        Trainer(config_of(tree))
    (tmp_path / "start.safetensors").write_bytes(b"PK\x03\x04 a pickle, say")
    with pytest.raises(CheckpointError, match=r"start\.safetensors: no safetensors file"):
        Trainer(config_of(tree))


def test_a_resumed_run_does_not_need_the_file_any_more(tree, tmp_path):
    file = tmp_path / "start.safetensors"
    save_file(model_of(tree).state_dict(), file)
    config = config_of(tree, steps=1)
    fit(config, tmp_path / "run", progress=False)
    file.unlink()
    assert fit(config, tmp_path / "run", resume=True, progress=False).name == "step-000001"
