"""The loop: it learns, resumes exactly, and never takes a partial checkpoint for a whole one."""

import csv
import subprocess
import sys

import pytest
import torch
from shapes_data import shapes_tree, write_shapes
from torch import nn

from clq_train.average import Average
from clq_train.backbone import build_backbone
from clq_train.checkpoint import list_checkpoints, load_model, load_state
from clq_train.clq import Objects
from clq_train.config import BackboneConfig, ScheduleConfig, parse_config
from clq_train.errors import CheckpointError, ConfigError, DataError, TrainingError
from clq_train.fit import fit
from clq_train.samples import Batch
from clq_train.schedule import learning_rate
from clq_train.trainer import Trainer


@pytest.fixture
def tree(tmp_path):
    return shapes_tree(write_shapes(tmp_path / "data"))


def config_of(tree, **schedule):
    return parse_config({**tree, "schedule": {**tree["schedule"], **schedule}}, "test")


def read_metrics(run):
    """Rows of metrics.csv without the time that they took."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_run_that_was_stopped_resumes_to_the_same_weights(tree, tmp_path):
    config = config_of(tree, steps=6)
    whole = fit(config, tmp_path / "whole", progress=False)
    fit(config, tmp_path / "parts", progress=False)
    for late in list_checkpoints(tmp_path / "parts")[1:]:  # as if it had died after step 3
        for file in late.iterdir():
            file.unlink()
        late.rmdir()
    resumed = fit(config, tmp_path / "parts", resume=True, progress=False)
    assert resumed.name == whole.name == "step-000006"
    ours, theirs = load_state(resumed), load_state(whole)
    for part in ("model", "average"):
        for name, value in theirs[part].items():
            assert torch.equal(ours[part][name], value), name
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")


def test_training_reduces_the_loss(tree, tmp_path):
    tree["run"]["checkpoint_every"] = 24
    fit(config_of(tree, steps=24), tmp_path / "run", progress=False)
    rows = read_metrics(tmp_path / "run")
    totals = [float(r["cls"]) + float(r["reg"]) + float(r["lqe"]) for r in rows]
    assert len(totals) == 24
    assert sum(totals[-5:]) < 0.8 * sum(totals[:5])


def test_a_run_does_not_write_over_another(tree, tmp_path):
    config = config_of(tree, steps=1)
    fit(config, tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match="give --resume or another --out"):
        fit(config, tmp_path / "run", progress=False)


def test_broken_data_stops_before_anything_is_written(tree, tmp_path):
    (tmp_path / "data/images/0.png").unlink()
    with pytest.raises(DataError, match="image 1: no file"):
        fit(config_of(tree), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_nothing_to_resume_is_said_and_the_run_begins(tree, tmp_path, caplog):
    with caplog.at_level("INFO", "clq_train"):
        fit(config_of(tree, steps=1), tmp_path / "run", resume=True, progress=False)
    assert f"{tmp_path / 'run'}: nothing to resume: the run begins" in caplog.text


def test_a_run_goes_on_with_other_options_that_are_said_but_not_with_another_model(
    tree, tmp_path, caplog
):
    fit(config_of(tree, steps=2), tmp_path / "run", progress=False)
    with caplog.at_level("INFO", "clq_train"):
        fit(config_of(tree, steps=3, lr=0.1), tmp_path / "run", resume=True, progress=False)
    assert "resumed with another configuration: schedule.lr: was 0.002, is 0.1" in caplog.text
    tree["model"]["head"]["tower_depth"] = 2
    wrong = config_of(tree, steps=2, optimizer="sgd", ema=None)
    with pytest.raises(CheckpointError, match=r"step-000003: beyond schedule\.steps: 2"):
        fit(wrong, tmp_path / "run", resume=True, progress=False)
    with pytest.raises(CheckpointError) as raised:
        fit(
            config_of(tree, steps=9, optimizer="sgd", ema=None),
            tmp_path / "run",
            resume=True,
            progress=False,
        )
    assert str(raised.value).split("\n") == [
        f"{tmp_path / 'run/step-000003'}: the run can't go on with",
        "model.head.tower_depth: was 1, is 2",
        "schedule.ema: was 0.9, is None",
        "schedule.optimizer: was adamw, is sgd",
    ]


def test_the_state_of_another_model_is_refused_though_the_configuration_fits(tree, tmp_path):
    last = fit(config_of(tree, steps=1), tmp_path / "run", progress=False)
    state = load_state(last)
    del state["model"]["head.scales"]
    state["model"]["head.cls.bias"] = torch.zeros(3)
    torch.save(state, last / "train_state.pt")
    (last / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError) as raised:
        fit(config_of(tree, steps=2), tmp_path / "run", resume=True, progress=False)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"{last}: the state is not this model's: ")
    assert "head.scales" in line
    assert "head.cls.bias: copying a param with shape torch.Size([3])" in line


def test_a_gpu_whose_memory_is_full_is_told_with_what_helps(tree, tmp_path, monkeypatch):
    def full(trainer, parts, step):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Trainer, "step", full)
    with pytest.raises(TrainingError, match=r"step 1: .* is full \(CUDA .*raise schedule\.accum"):
        fit(config_of(tree), tmp_path / "run", progress=False)


def test_a_folder_in_which_another_process_trains_is_refused(tree, tmp_path):
    (tmp_path / "run").mkdir()
    hold = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    input()
"""
    command = [sys.executable, "-c", hold, str(tmp_path / "run/.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="run: another process trains there"):
            fit(config_of(tree, steps=1), tmp_path / "run", progress=False)
        other.communicate(b"\n")


@pytest.mark.slow
def test_workers_give_the_batches_of_the_main_process(tree, tmp_path):
    alone = fit(config_of(tree, steps=3), tmp_path / "alone", progress=False)
    tree["run"]["workers"] = 2
    helped = fit(config_of(tree, steps=3), tmp_path / "helped", progress=False)
    for name, value in load_state(alone)["model"].items():
        assert torch.equal(load_state(helped)["model"][name], value), name


def test_a_checkpoint_holds_the_average_and_the_resolved_configuration(tree, tmp_path):
    config = config_of(tree, steps=3)
    last = fit(config, tmp_path / "run", progress=False)
    model, loaded = load_model(last)
    assert loaded == config
    assert not model.training
    for name, value in load_state(last)["average"].items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.slow
def test_resnet50_with_group_norm_trains_on_whole_images(tree, tmp_path):
    tree["model"]["backbone"] = {"name": "resnet50", "frozen_stages": 2, "frozen_norm": True}
    tree["model"]["head"]["norm"] = "group"
    tree["augment"] = {"shorter_px": [96, 128]}
    fit(config_of(tree, steps=2, optimizer="sgd", lr=0.01, ema=None), tmp_path, progress=False)
    rows = read_metrics(tmp_path)
    assert len(rows) == 2
    assert all(float(row[name]) > 0 for row in rows for name in ("cls", "reg", "lqe"))


def schedule(**changes):
    return ScheduleConfig.model_validate(
        {
            "steps": 1200,
            "batch": 16,
            "optimizer": "sgd",
            "lr": 0.01,
            "weight_decay": 1e-4,
            "decay": "step",
            "warmup_steps": 500,
            **changes,
        }
    )


def test_the_step_schedule_warms_up_and_drops_after_epochs_8_and_11_of_12():
    rates = [learning_rate(schedule(), s) for s in range(1, 1201)]
    assert rates[0] == pytest.approx(0.01 * (0.001 + 0.999 / 500))
    assert rates[499] == rates[799] == 0.01
    assert rates[800] == rates[1099] == pytest.approx(0.001)
    assert rates[1100] == rates[-1] == pytest.approx(0.0001)


def test_drops_that_are_epochs_and_not_shares_are_refused():
    with pytest.raises(ValueError, match=r"drops \[8.0, 11.0\]: expected rising shares of the run"):
        schedule(drops=[8, 11])


def test_the_cosine_schedule_falls_from_the_rate_to_zero():
    rates = [learning_rate(schedule(decay="cosine"), s) for s in range(500, 1201)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 0.01
    assert rates[350] == pytest.approx(0.005)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_the_average_forgets_its_random_start():
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    average = Average(layer, 0.998)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    for step in range(1, 101):
        average.update(layer, step)
    # A fixed decay of 0.998 would hold 82 % of the start after 100 steps.
    assert (average.weights["weight"] - 1).abs().max() < 0.01


def test_frozen_stages_keep_their_weights_and_statistics(tree):
    tree["model"]["backbone"] = {"name": "regnet_nano", "frozen_stages": 2}
    trainer = Trainer(config_of(tree))
    before = {k: v.clone() for k, v in trainer.model.backbone.state_dict().items()}
    images = torch.randint(0, 255, (2, 128, 128, 3), dtype=torch.uint8)
    box = Objects(torch.tensor([[10.0, 10.0, 60.0, 60.0]]), torch.tensor([0]))
    for step in (1, 2):
        trainer.step([Batch(images, [box, box], ["1.png", "2.png"])], step)
    changed = {
        name.split(".")[1]
        for name, value in trainer.model.backbone.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"2", "3", "4"}


@pytest.mark.parametrize("name", ["resnet50", "regnet_nano", "regnet_small"])
def test_backbones_give_three_maps_of_strides_8_16_32(name):
    backbone = build_backbone(BackboneConfig(name=name)).eval()
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, 128, 64))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, 128 // stride, 64 // stride)
        for channels, stride in zip(backbone.channels, (8, 16, 32), strict=True)
    ]
