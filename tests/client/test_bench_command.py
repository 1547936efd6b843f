"""`clq-client bench` as a process: its report, its JSON, its page, its exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from clq_client.commands import app

COMMAND = [sys.executable, "-c", "from clq_client.cli import main; main()", "bench"]
QUICK = ["--duration-s", "0.6", "--warmup-s", "0.2"]


def bench(*arguments, cwd, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "120"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def shots(tmp_path, png_of):
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(png_of(40, 20, 40 * index))
    return tmp_path


@pytest.mark.slow
def test_a_ramp_is_reported_as_table_json_and_page(peer, shots):
    ramp = ["--ramp", "20:40", "--steps", "2", "--json", "r.json", "--plot", "r.html"]
    done = bench(".", *ramp, *QUICK, "--url", peer.url, cwd=shots)
    assert done.returncode == 0, done.stderr
    assert "open loop, poisson arrivals, seed 0; 0.6 s after 0.2 s of warm-up; 2 images" in (
        done.stdout
    )
    table = done.stdout.splitlines()[3:6]
    assert table[0].split()[:8] == (
        ["load", "offered/s", "done/s", "good/s", "p50", "p90", "p99", "p99.9"]
    )
    assert [line.split()[0] for line in table[1:]] == ["20.0/s", "40.0/s"]
    report = json.loads((shots / "r.json").read_text())
    assert [run["rate"] for run in report["runs"]] == [20, 40]
    assert report["images"]["count"] == 2
    assert report["generator_ceiling"] > 0
    for run in report["runs"]:
        assert run["requests"] == run["good"] > 0
        assert run["errors"] == {}
        assert run["latency_ms"]["p50"] <= run["latency_ms"]["p99"] <= run["latency_ms"]["max"]
    page = (shots / "r.html").read_text()
    assert page.count("<h2>") == 5  # by rate twice, over time, percentiles, the figures
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert ElementTree.fromstring(svg).tag == "svg"
    assert {p.name for p in shots.iterdir()} == {"0.png", "1.png", "r.json", "r.html"}


@pytest.mark.slow
def test_a_closed_loop_sends_the_images_by_turns_with_the_key(peer, shots):
    done = bench(".", "--clients", 2, *QUICK, "--url", peer.url, cwd=shots, CLQ_API_KEY="a-key")
    assert done.returncode == 0, done.stderr
    assert "closed loop" in done.stdout
    assert "2 clients" in done.stdout
    assert "the service sends no Server-Timing" in done.stdout
    sent = [seen.body for seen in peer.detects]
    assert sent[0] == (shots / "0.png").read_bytes()  # the check before the run
    assert abs(sent.count(sent[0]) - (len(sent) - sent.count(sent[0]))) <= 2
    assert {seen.headers["authorization"] for seen in peer.detects} == {"Bearer a-key"}
    assert "x-request-id" not in peer.detects[-1].headers


@pytest.mark.slow
def test_the_service_stages_stand_beside_the_latency_of_the_client(peer, shots):
    for _ in range(500):
        peer.answers(headers={"Server-Timing": "decode;dur=1.0, infer;dur=2.5, total;dur=4.0"})
    done = bench(".", "--rate", 30, *QUICK, "--plot", "r.html", "--url", peer.url, cwd=shots)
    stages = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    assert stages["decode"] == ["1.0", "1.0", "1.0"]
    assert stages["infer"] == ["2.5", "2.5", "2.5"]
    client, outside = (float(stages[name][0]) for name in ("client", "outside"))
    assert outside == pytest.approx(client - 4.0, abs=0.11)
    page = (shots / "r.html").read_text()
    assert "Where the time goes" in page
    assert "decode 1.0 ms" in page


@pytest.mark.slow
def test_errors_are_counted_by_status_and_a_run_without_a_good_answer_is_no_success(peer, shots):
    peer.answers()  # the check before the run is answered
    peer.steps += [peer.problem_step(503, "overloaded", retry_after=1)] * 500
    done = bench(".", "--rate", 30, *QUICK, "--json", "r.json", "--url", peer.url, cwd=shots)
    assert done.returncode == 1
    assert "no request was answered with status 200" in done.stdout
    (run,) = json.loads((shots / "r.json").read_text())["runs"]
    assert run["errors"] == {"503": run["requests"]}
    assert (run["goodput"], run["latency_ms"]) == (0, {})


@pytest.mark.slow
def test_the_goal_that_no_rate_holds_is_said_with_exit_code_1(peer, shots):
    for path in shots.iterdir():
        peer.slow_s[path.read_bytes()] = 0.05
    goal = ["--slo", "p50=1ms", "--duration-s", 0.1, "--warmup-s", 0]
    done = bench(".", *goal, "--url", peer.url, cwd=shots)
    assert done.returncode == 1
    assert done.stdout.endswith("p50=1ms: held at no rate\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give exactly one of --rate, --ramp, --slo and --clients"),
        (["--rate", "5", "--clients", "2"], "give exactly one of"),
        (["--ramp", "5"], "--ramp: '5' is no pair of rates; accepted: e.g. 5:50"),
        (["--ramp", "5:nan"], "--ramp: '5:nan' is no pair of rates"),
        (["--slo", "200ms"], "'200ms' is no latency goal; accepted: e.g. p99=200ms"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(peer, shots, arguments, told):
    done = CliRunner().invoke(app, ["bench", str(shots), *arguments, "--url", peer.url])
    assert done.exit_code == 2
    assert told in done.stderr
    assert peer.seen == []


def test_a_service_that_refuses_the_image_is_not_measured(peer, shots):
    (shots / "0.png").write_bytes(b"no image")
    done = bench(".", "--rate", 5, "--url", peer.url, cwd=shots)
    assert done.returncode == 2
    assert "422 corrupt" in done.stderr
    assert len(peer.seen) == 1


def test_ctrl_c_ends_the_run_with_130_and_without_a_report(peer, shots):
    with subprocess.Popen(
        [*COMMAND, ".", "--rate", "20", "--duration-s", "600", "--json", "r.json"],
        cwd=shots,
        env=os.environ | {"CLQ_URL": peer.url},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while len(peer.detects) < 5:
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "stopped" in process.stderr.read()
    assert not (shots / "r.json").exists()
