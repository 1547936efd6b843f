"""A run that is killed with no warning, in the middle of epochs, ends with the very weights."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from shapes_data import shapes_tree, write_shapes

from clq_train.checkpoint import list_checkpoints, load_state
from clq_train.config import dump_config, parse_config
from clq_train.metrics_file import read_metrics

TIMEOUT_S = 300


def start(folder, run, *options):
    command = [sys.executable, "-m", "clq_train", "fit", str(folder / "run.yaml")]
    return subprocess.Popen(
        [*command, "--out", str(run), *options],
        # The bits of a sum depend on the number of threads.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_when(process, happens):
    """SIGKILL as soon as that is so."""
    end = time.monotonic() + TIMEOUT_S
    while not happens():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run is not there yet"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def finish(process):
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_with_the_same_bits(tmp_path):
    # An epoch of 7 images is 3 1/2 steps, a checkpoint is made every 4.
    tree = shapes_tree(write_shapes(tmp_path / "data", images=7))
    tree["schedule"] |= {"steps": 14, "accumulate": 2}
    tree["run"] |= {"workers": 1, "checkpoint_every": 4, "eval_every": 8, "cache_mib": 1}
    (tmp_path / "run.yaml").write_text(dump_config(parse_config(tree, "test")))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    kill_when(start(tmp_path, parts), lambda: len(read_metrics(parts / "metrics.csv")) >= 6)
    # In the middle of writing the checkpoint of step 12, or, on a slow machine, right after it.
    saving = [parts / "step-000012.tmp", parts / "step-000012"]
    kill_when(start(tmp_path, parts, "--resume"), lambda: any(path.exists() for path in saving))
    resumed = start(tmp_path, parts, "--resume")
    uninterrupted = start(tmp_path, whole)
    assert f"checkpoint {parts / 'step-000014'}" in finish(resumed)
    finish(uninterrupted)
    assert [path.name for path in list_checkpoints(parts)] == [
        path.name for path in list_checkpoints(whole)
    ]
    ours, theirs = (load_state(run / "step-000014") for run in (parts, whole))
    for part in ("model", "average"):
        for name, value in theirs[part].items():
            assert torch.equal(ours[part][name], value), name
    for index, moments in theirs["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(ours["optimizer"]["state"][index][name], value), name
    weights = [(run / "step-000014/model.safetensors").read_bytes() for run in (parts, whole)]
    assert weights[0] == weights[1]
    for table in ("metrics.csv", "eval.csv"):
        rows = [
            [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run / table)]
            for run in (parts, whole)
        ]
        assert rows[0] == rows[1]
