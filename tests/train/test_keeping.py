"""What a run tells and leaves: lines or a bar, TensorBoard, AP on val, the best, curves, dumps."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shapes_data import shapes_tree, write_shapes
from typer.testing import CliRunner

from clq_train.batches import batches
from clq_train.checkpoint import WEIGHTS, best_checkpoint, save_weights
from clq_train.cli import app
from clq_train.coco import load_split
from clq_train.config import dump_config, parse_config
from clq_train.curves import draw_curves
from clq_train.errors import CheckpointError, ConfigError, DataError, TrainingError
from clq_train.fit import fit
from clq_train.metrics_file import MetricsFile, read_metrics
from clq_train.nonfinite import write_dump
from clq_train.replay import replay
from clq_train.trainer import NotFinite, Trainer


@pytest.fixture
def tree(tmp_path):
    return shapes_tree(write_shapes(tmp_path / "data"))


def config_of(tree, run=(), **schedule):
    changes = {"schedule": tree["schedule"] | schedule, "run": tree["run"] | dict(run)}
    return parse_config(tree | changes, "test")


def without_seconds(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(path)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with everything on, by the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("keeping")
    tree = shapes_tree(write_shapes(folder / "data"))
    options = {"eval_every": 2, "keep": 1, "log_every": 2, "tensorboard": True}
    config = config_of(tree, options, steps=5)
    (folder / "run.yaml").write_text(dump_config(config))
    command = ["fit", str(folder / "run.yaml"), "--out", str(folder / "run")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    return folder / "run", config, result


def test_where_there_is_no_terminal_every_few_steps_are_a_line(finished):
    run, _, result = finished
    lines = result.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "step 2/5",
        "step 2",
        "step 4/5",
        "step 4",
        "step 5/5",
        "step 5",
    ]
    for part in ("loss ", "cls ", "lr 0.002", "images/s", "left"):
        assert part in lines[0]
    assert result.stdout.splitlines() == [
        f"curves {run / 'curves.png'}",
        f"checkpoint {run / 'step-000005'}",
    ]


def test_the_best_is_kept_by_its_average_precision(finished):
    run, _, result = finished
    rows = read_metrics(run / "eval.csv")
    assert [row["step"] for row in rows] == ["2", "4", "5"]
    first_best = max(rows, key=lambda row: float(row["ap"]))["step"]
    assert best_checkpoint(run).name == f"step-00000{first_best}"
    assert (run / "best/model.safetensors").is_file()
    assert f"step {first_best}: AP " in result.stderr
    kept = {path.name for path in run.glob("step-*")}
    assert kept == {f"step-00000{first_best}", "step-000005"}


def test_a_checkpoint_that_was_saved_but_not_measured_is_measured_on_resuming(finished):
    run, config, _ = finished
    path = run / "eval.csv"
    measured = without_seconds(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    fit(config, run, resume=True, progress=False)
    assert without_seconds(path) == measured


def test_tensorboard_reads_what_the_table_has(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _, _ = finished
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for name, file, column in (
        ("train/cls", "metrics.csv", "cls"),
        ("train/lr", "metrics.csv", "lr"),
        ("val/ap", "eval.csv", "ap"),
    ):
        written = {int(row["step"]): float(row[column]) for row in read_metrics(run / file)}
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx(written, rel=1e-4)


def test_tensorboard_that_is_not_installed_is_said_before_anything_is_written(
    tree, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'clq-train\[tensorboard\]'"):
        fit(config_of(tree, {"tensorboard": True}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_split_val_that_is_broken_is_said_before_the_first_step(tree, tmp_path):
    tree["data"]["splits"] = {"train": tree["data"]["splits"]["train"]}
    with pytest.raises(DataError, match="no split 'val'"):
        fit(config_of(tree, {"eval_every": 5}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_on_a_terminal_there_is_a_bar_with_the_loss_the_rate_and_the_time_left():
    script = """
from clq_train.progress import Progress
import time
with Progress(40, 0, 8, 50, shown=True) as progress:
    for step in range(1, 41):
        time.sleep(0.01)
        progress.step(step, {"cls": 1.0, "reg": 0.5, "lr": 0.002})
    progress.say("step 40: AP 12.3 on val")
"""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    with subprocess.Popen([sys.executable, "-c", script], stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0
    assert "40/40" in text
    assert "loss 1.500, lr 0.002, " in text
    assert "images/s" in text
    assert "step 40: AP 12.3 on val" in text


def test_the_curves_of_a_run_that_goes_on_can_be_drawn(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.csv: no steps to draw"):
        draw_curves(tmp_path)
    with MetricsFile(tmp_path / "metrics.csv", 0) as metrics:
        for step in range(1, 300):
            norm = np.inf if step == 3 else 5.0  # a step that float16 left out
            metrics.write(step, {"reg": 9 / step, "cls": 5 / step, "lr": 0.1, "grad_norm": norm})
    result = CliRunner().invoke(app, ["curves", str(tmp_path)], catch_exceptions=False)
    assert result.stdout == f"curves {tmp_path / 'curves.png'}\n"
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).reshape(-1, 3)
    for colour in ("#2563eb", "#d97706"):  # the lines of cls and reg
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(1).sum() > 100


def test_a_step_that_is_not_finite_is_kept_and_can_be_computed_again(tree, tmp_path):
    config = config_of(tree, steps=9, batch=4, accumulate=2, lr=1e18, warmup_steps=0)
    with pytest.raises(TrainingError) as raised:
        fit(config, tmp_path / "run", progress=False)
    problem, again = str(raised.value).split("\n")
    dump = Path(again.removeprefix("to see it again: clq-train replay "))
    story = json.loads((dump / "losses.json").read_text())
    images = [image for batch in story["batches"] for image in batch["images"]]
    assert problem.startswith(f"step {story['step']}: the loss is not finite: {{'reg': ")
    assert problem.endswith(f"images {', '.join(images)}")
    assert sorted(images) == [f"{tree['data']['root']}/images/{i}.png" for i in range(4)]

    result = CliRunner().invoke(app, ["replay", str(dump)], catch_exceptions=False)
    lines = result.stdout.splitlines()
    for number, batch in enumerate(story["batches"]):
        losses = ", ".join(f"{name} {float(text):g}" for name, text in batch["losses"].items())
        assert f"batch {number}: {losses}; images {', '.join(batch['images'])}" in lines
    assert "  the first output that is not finite is that of backbone.stages." in result.stdout
    assert "  the gradient is not finite in " in result.stdout


@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_that_is_finite_can_be_computed_again_to_the_same_losses(tree, tmp_path, frozen):
    # What makes it stop is one gradient: the losses themselves are ordinary numbers.
    plain = config_of(tree)
    start = save_weights(tmp_path / "start", Trainer(plain).weights(), plain) / WEIGHTS
    config = config_of(tree | {"init": str(start)}, batch=4, accumulate=2, frozen_statistics=frozen)
    trainer = Trainer(config)
    trainer.model.head.cls.bias.register_hook(lambda value: value * float("inf"))
    parts = next(batches(load_split(config.data, "train"), config, 0))
    with pytest.raises(NotFinite, match="the gradient is not finite") as raised:
        trainer.step(parts, 1)
    dump = write_dump(tmp_path, 1, trainer, raised.value)
    lines = list(replay(dump, []))
    assert len(lines) == 2  # without that hook nothing is wrong
    for line, losses, part in zip(lines, raised.value.losses, parts, strict=True):
        said = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        assert line.endswith(f": {said}; images {', '.join(part.paths)}")
    with pytest.raises(ConfigError, match="'cuda:99' is not there"):
        list(replay(dump, ["run.device=cuda:99"]))
    (dump / "batches.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-000001: no dump of a step: .*No such"):
        list(replay(dump, []))
