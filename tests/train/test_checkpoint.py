"""Checkpoints: whole or not there, the best never removed, a damaged or foreign one refused."""

import os
import resource
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from shapes_data import shapes_tree

from clq_train.checkpoint import (
    best_checkpoint,
    link_best,
    list_checkpoints,
    load_model,
    load_state,
    save_checkpoint,
)
from clq_train.config import parse_config
from clq_train.errors import CheckpointError
from clq_train.run_folder import opened
from clq_train.trainer import Trainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    tree = shapes_tree(tmp_path_factory.mktemp("data"))
    tree["run"]["keep"] = 2
    return Trainer(parse_config(tree, "test"))


def save(trainer, run, step):
    return save_checkpoint(run, step, trainer.weights(), trainer.state(step), trainer.config)


def names(run):
    return sorted(path.name for path in run.iterdir())


def test_the_last_are_kept_and_the_best(trainer, tmp_path):
    link_best(tmp_path, save(trainer, tmp_path, 1))
    for step in (2, 3, 4):
        save(trainer, tmp_path, step)
    assert names(tmp_path) == ["best", "step-000001", "step-000003", "step-000004"]
    assert best_checkpoint(tmp_path) == tmp_path / "step-000001"
    load_model(tmp_path / "best")
    link_best(tmp_path, tmp_path / "step-000004")
    save(trainer, tmp_path, 5)
    assert names(tmp_path) == ["best", "step-000004", "step-000005"]


def test_what_a_killed_run_left_half_written_is_no_checkpoint_and_is_cleared(trainer, tmp_path):
    save(trainer, tmp_path, 9)
    (tmp_path / "step-000012.tmp").mkdir()
    (tmp_path / "best.tmp").symlink_to("step-000009")
    assert list_checkpoints(tmp_path) == [tmp_path / "step-000009"]
    with opened(tmp_path):
        assert names(tmp_path) == [".lock", "best.tmp", "step-000009"]
        link_best(tmp_path, tmp_path / "step-000009")
    assert names(tmp_path) == [".lock", "best", "step-000009"]


def test_checkpoints_are_in_the_order_of_their_steps_beyond_a_million(tmp_path):
    for step in (999_999, 1_000_000, 20):
        (tmp_path / f"step-{step:06d}").mkdir()
    steps = [path.name for path in list_checkpoints(tmp_path)]
    assert steps == ["step-000020", "step-999999", "step-1000000"]


def test_its_sums_are_those_of_sha256sum(trainer, tmp_path):
    saved = save(trainer, tmp_path, 1)
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    said = subprocess.run(command, cwd=saved, capture_output=True, text=True, check=True).stdout
    assert said == "model.safetensors: OK\ntrain_state.pt: OK\n"


@pytest.mark.parametrize(
    ("file", "load"), [("model.safetensors", load_model), ("train_state.pt", load_state)]
)
def test_a_damaged_or_missing_file_is_named(trainer, tmp_path, file, load):
    saved = save(trainer, tmp_path, 1)
    path = saved / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of a weight
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"step-000001/{file}: damaged: its SHA-256 is not"):
        load(saved)
    path.write_bytes(content[:1000])
    (saved / "SHA256SUMS").unlink()  # as a person would who put it together
    with pytest.raises(CheckpointError, match=rf"step-000001/{file}: "):
        load(saved)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"step-000001/{file}: .*No such file"):
        load(saved)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("/tmp/clq-evil",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"step": 1, "model": {}}, "no state of a run: it lacks average, optimizer, scaler"),
        ([1, 2], "no state of a run: it lacks average, model, optimizer, scaler, step"),
        (Evil(), "can't be read: .*mkdir"),
    ],
)
def test_a_foreign_state_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "train_state.pt")
    with pytest.raises(CheckpointError, match=rf"(?s)train_state\.pt: {message}"):
        load_state(tmp_path)
    assert not Path("/tmp/clq-evil").exists()


@contextmanager
def no_file_larger_than(size):
    """A file system that refuses to write further, as a full one does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.5, 1.5], ids=["weights", "state"])
def test_a_write_that_fails_loses_nothing_that_is_there(trainer, tmp_path, share):
    saved = save(trainer, tmp_path, 1)
    weights = (saved / "model.safetensors").stat().st_size  # the state has them twice and more
    with (
        no_file_larger_than(int(share * weights)),
        pytest.raises(CheckpointError, match=r"step-000002: not saved: .*File too large.*MiB are"),
    ):
        save(trainer, tmp_path, 2)
    assert names(tmp_path) == ["step-000001"]
    assert load_state(saved)["step"] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_loses_nothing_that_is_there(trainer, tmp_path):
    disk, measured = tmp_path / "disk", save(trainer, tmp_path, 1)
    size = sum(file.stat().st_size for file in measured.iterdir())
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * size)}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this root may not mount a small file system")
    try:
        saved = [save(trainer, disk, step) for step in (1, 2)]
        with pytest.raises(CheckpointError, match=r"step-000003: not saved: .*No space left"):
            save(trainer, disk, 3)
        assert sorted(disk.iterdir()) == list_checkpoints(disk) == saved
        assert [load_state(checkpoint)["step"] for checkpoint in saved] == [1, 2]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
