"""`clq-client tune`: what is tried, what wins, and that no process is left."""

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clq_client.tune.candidates import Candidate, default_candidates, given_candidates
from clq_client.tune.halving import halve

COMMAND = [sys.executable, "-c", "from clq_client.cli import main; main()", "tune"]
STUB = shlex.join([sys.executable, str(Path(__file__).with_name("stub_service.py"))])
SCREENS = Path(__file__).parents[1] / "data/screens"


@settings(deadline=None)  # how long it takes is no matter
@given(st.lists(st.integers(0, 100), min_size=1, max_size=40))
def test_halving_keeps_the_best_and_every_round_costs_the_same(scores):
    spent = {}

    async def score(index, seconds):
        spent.setdefault(seconds, []).append(index)
        return scores[index]

    ranking = asyncio.run(halve(range(len(scores)), score, 1.0))
    assert ranking[0][0] == scores.index(max(scores))
    left = list(range(len(scores)))  # the same as plain rounds
    for seconds, tried in spent.items():
        assert tried == left
        assert seconds * len(tried) <= len(scores) + 2 * seconds
        left = sorted(left, key=lambda index: -scores[index])[: (len(left) + 1) // 2]
    assert len(spent[max(spent)]) <= 2


def test_halving_drops_what_cannot_be_scored():
    async def score(letter, seconds):
        return None if letter == "b" else ord(letter)

    assert asyncio.run(halve("abc", score, 1.0)) == [("c", 99), ("a", 97)]
    assert asyncio.run(halve("b", score, 1.0)) == []


def test_by_default_sessions_threads_and_batches_are_tried_on_a_cpu():
    two = default_candidates("cpu", 2)
    assert two[0] == Candidate(())
    assert len(two) == len(set(two)) == 7
    eight = [dict(candidate.settings) for candidate in default_candidates("cpu", 8)[1:]]
    assert {s["threads"] for s in eight} == {"7", "8"}
    assert {s["sessions_per_device"] for s in eight} == {"1", "4", "8"}
    assert all(int(s["sessions_per_device"]) <= int(s["threads"]) for s in eight)
    one = default_candidates("cpu", 1)
    assert {dict(c.settings).get("sessions_per_device", "1") for c in one} == {"1"}


def test_by_default_larger_batches_are_tried_on_a_gpu():
    batches = {dict(c.settings)["max_batch"] for c in default_candidates("cuda:0", 8)[1:]}
    assert batches == {"4", "8", "16", "32"}


def test_candidates_are_every_combination_as_variables_and_as_toml():
    found = given_candidates(["max_batch=1,4", "device=cpu", "batch_delay_ms=0.5"])
    assert [str(candidate) for candidate in found] == [
        "as it is now",
        "max_batch=1 device=cpu batch_delay_ms=0.5",
        "max_batch=4 device=cpu batch_delay_ms=0.5",
    ]
    assert found[2].environment()["CLQ_SERVE_MAX_BATCH"] == "4"
    assert tomllib.loads(found[2].toml()) == {
        "max_batch": 4,
        "device": "cpu",
        "batch_delay_ms": 0.5,
    }


@pytest.mark.parametrize(
    "choice", ["max_batch", "max_batch=", "Max=1", "port=80", "a=" + "1," * 200]
)
def test_choices_that_cannot_be_tried_are_refused(choice):
    with pytest.raises(ValueError, match="--try"):
        given_candidates([choice])


def environment(tmp_path):
    return os.environ | {"STUB_PIDS": str(tmp_path / "pids"), "COLUMNS": "120"}


def left_over(tmp_path):
    """The processes of the stub services that are still there; the file may be empty at first."""
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    return [pid for pid in pids if _runs(pid)]


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_the_settings_that_do_most_are_printed_and_no_process_is_left(tmp_path):
    choices = ["--try", "threads=4", "--try", "max_batch=1,0"]
    done = subprocess.run(
        [*COMMAND, SCREENS, "--command", STUB, *choices, "--seconds", "0.1"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "CLQ_SERVE_THREADS=4\nCLQ_SERVE_MAX_BATCH=1\n" in done.stdout
    assert done.stdout.endswith("\nthreads = 4\nmax_batch = 1\n")
    table = done.stdout.splitlines()[1:4]
    assert table[0].endswith("threads=4 max_batch=1")
    assert table[1].endswith("as it is now")
    assert "not tried" in table[2]
    assert "stub: CLQ_SERVE_MAX_BATCH: '0' is not accepted" in table[2]
    assert (tmp_path / "pids").read_text()
    assert left_over(tmp_path) == []


@pytest.mark.slow
def test_a_goal_rules_out_what_is_too_slow(tmp_path):
    choices = ["--try", "threads=64", "--try", "batch_delay_ms=5,400"]
    done = subprocess.run(
        [*COMMAND, SCREENS, "--command", STUB, *choices, "--seconds", "0.2", "--goal", "p50=200ms"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "CLQ_SERVE_BATCH_DELAY_MS=5\n" in done.stdout
    assert "missed     threads=64 batch_delay_ms=400" in done.stdout
    assert "the best settings hold p50=200ms up to " in done.stdout
    assert (tmp_path / "pids").read_text()
    assert left_over(tmp_path) == []


def test_a_goal_that_nothing_holds_is_said_with_exit_code_1(tmp_path):
    choices = ["--try", "threads=1", "--goal", "p50=1ms", "--seconds", "0.1"]
    done = subprocess.run(
        [*COMMAND, SCREENS, "--command", STUB, *choices],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.endswith("\nno settings hold p50=1ms\n")


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_a_tune_that_is_stopped_leaves_no_process(tmp_path, ended_by):
    with subprocess.Popen(
        [*COMMAND, SCREENS, "--command", STUB, "--seconds", "600"],
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline_s = time.monotonic() + 60
            while not (tmp_path / "pids").exists() or len(left_over(tmp_path)) < 2:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
            process.send_signal(ended_by)  # the service may or may not be ready by now
            assert process.wait(60) == 130
        finally:
            process.kill()
        assert "the service process is ended" in process.stderr.read()
    assert (tmp_path / "pids").read_text()
    assert left_over(tmp_path) == []


def test_a_command_that_is_not_there_is_said(tmp_path):
    done = subprocess.run(
        [*COMMAND, SCREENS, "--command", "no-such-program run"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "no-such-program" in done.stderr
