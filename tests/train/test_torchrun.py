"""Two real processes under torchrun do the step of one, and fail with one error."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from shapes_data import shapes_tree, write_shapes

from clq_train.checkpoint import load_state
from clq_train.config import dump_config, parse_config
from clq_train.fit import fit
from clq_train.metrics_file import read_metrics

TIMEOUT_S = 300
pytestmark = pytest.mark.slow


@pytest.fixture
def tree(tmp_path):
    return shapes_tree(write_shapes(tmp_path / "data", images=6))


def start(tree, tmp_path, *options, processes=2, restarts=0):
    (tmp_path / "run.yaml").write_text(dump_config(parse_config(tree, "test")))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    ours = ["-m", "clq_train", "fit", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]
    return subprocess.Popen(
        [sys.executable, *torchrun, f"--max-restarts={restarts}", *ours, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def our_errors(text):
    return [line for line in text.splitlines() if line.startswith("clq-train: ")]


def without_batch_statistics(tree):
    """A model in which no image depends on the others of its batch."""
    tree["model"]["backbone"] = {"name": "regnet_x_400mf", "frozen_norm": True}
    tree["model"]["head"]["norm"] = "group"
    tree["schedule"] |= {"steps": 4, "batch": 4, "optimizer": "sgd", "lr": 0.01}
    tree["run"] |= {"checkpoint_every": 2, "eval_every": 2}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_of_two_images_do_what_one_does_with_four(tree, tmp_path, accumulate):
    without_batch_statistics(tree)
    alone = fit(parse_config(tree, "test"), tmp_path / "alone", progress=False)
    tree["schedule"]["accumulate"] = accumulate
    process = start(tree, tmp_path)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    run = tmp_path / "run"
    # Only one process prints.
    assert out.splitlines() == [
        f"curves {run / 'curves.png'}",
        f"checkpoint {run / 'step-000004'}",
    ]
    assert err.count("step 4/4: loss ") == 1
    assert "Warning" not in err
    for table, tolerance in (("metrics.csv", 1e-4), ("eval.csv", 0.02)):
        ours, theirs = read_metrics(run / table), read_metrics(tmp_path / "alone" / table)
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            numbers = [
                {k: float(v) for k, v in row.items() if k != "seconds"} for row in (mine, other)
            ]
            assert numbers[0] == pytest.approx(numbers[1], rel=tolerance, abs=tolerance)
    ours, theirs = load_state(run / "step-000004"), load_state(alone)
    for part in ("model", "average"):
        for name, value in theirs[part].items():
            torch.testing.assert_close(ours[part][name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_with_synchronised_norms_do_what_one_does(tree, tmp_path):
    tree["schedule"] |= {"steps": 4, "batch": 4, "optimizer": "sgd", "lr": 0.01}
    tree["run"] |= {"device": "cuda", "sync_norm": True}
    alone = fit(parse_config(tree, "test"), tmp_path / "alone", progress=False)
    _, err = start(tree, tmp_path).communicate(timeout=TIMEOUT_S)
    assert "Warning" not in err
    ours, theirs = load_state(tmp_path / "run/step-000004"), load_state(alone)
    for name, value in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], value, rtol=1e-2, atol=1e-3, msg=name)


def test_what_is_wrong_for_all_is_told_once(tree, tmp_path):
    tree["run"]["device"] = "cuda"
    if torch.cuda.is_available():
        count = torch.cuda.device_count() + 1
        message = f"{count} processes on this machine, one GPU each"
    else:
        count, message = 2, "'cuda' is not there; CUDA GPUs found: 0"
    _, err = start(tree, tmp_path, processes=count).communicate(timeout=TIMEOUT_S)
    assert len(our_errors(err)) == 1
    assert message in our_errors(err)[0]
    assert not (tmp_path / "run").exists()


def test_an_image_that_only_the_second_process_meets_ends_both_with_one_error(tree, tmp_path):
    tree["schedule"] |= {"batch": 2, "steps": 50}
    process = start(tree, tmp_path)
    run = tmp_path / "run"
    wait_for_step(process, run, 1)
    for file in (tmp_path / "data/images").iterdir():
        file.write_bytes(file.read_bytes()[:200])
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert len(our_errors(err)) == 1
    assert "the PNG file stops before its end" in our_errors(err)[0]


def wait_for_step(process, run, step):
    end = time.monotonic() + TIMEOUT_S
    while not any(int(row["step"]) >= step for row in read_metrics(run / "metrics.csv")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run is not there yet"
        time.sleep(0.01)


def test_after_a_kill_torchrun_starts_both_again_and_one_alone_can_go_on(tree, tmp_path):
    tree["schedule"] |= {"steps": 24}
    run = tmp_path / "run"
    process = start(tree, tmp_path, "--resume", restarts=1)
    wait_for_step(process, run, 4)
    children = subprocess.run(
        ["pgrep", "--parent", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    # torchrun may end the other before it has told that it is left alone.
    for told in our_errors(err):
        assert told.startswith("clq-train: another process of the run has ended")
    assert len(our_errors(err)) <= 1
    assert out.endswith("step-000024\n")
    assert [int(row["step"]) for row in read_metrics(run / "metrics.csv")] == list(range(1, 25))
    tree["schedule"]["steps"] = 26
    fit(parse_config(tree, "test"), run, resume=True, progress=False)
    assert [int(row["step"]) for row in read_metrics(run / "metrics.csv")] == list(range(1, 27))
