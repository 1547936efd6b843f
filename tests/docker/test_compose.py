"""The service as people run it: built by Compose, started, asked for detections, looked at inside.

Needs a Docker engine and either form of Compose; says why it skips where there is none.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
SCREENS = ROOT / "tests" / "data" / "screens"
MAX_ADDED_BYTES = 350 * 10**6
BUILD_TIMEOUT_S = 1800
HEALTHY_TIMEOUT_S = 180

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compose_command() -> list[str]:
    """`docker compose` or `docker-compose`, with an engine that answers."""
    if not succeeds("docker", "info"):
        reason = "`docker info` does not work: no Docker engine"
        assert "DOCKER_HOST" not in os.environ, f"{reason}, though DOCKER_HOST names one"
        pytest.skip(reason)
    for command in (["docker", "compose"], ["docker-compose"]):
        if succeeds(*command, "version"):
            return command
    pytest.fail("the engine answers, but neither `docker compose` nor `docker-compose` works")


@pytest.fixture(scope="module")
def compose_environment() -> dict[str, str]:
    """A project name and a port of this test's own; the package index that pip uses here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    own = {"COMPOSE_PROJECT_NAME": f"clqtest{os.getpid()}", "CLQ_PORT": str(port)}
    return os.environ | index_variables() | own


@pytest.fixture(scope="module")
def container(
    compose_command: list[str], compose_environment: dict[str, str]
) -> Iterator[dict[str, object]]:
    """`docker inspect` of the healthy container."""

    def compose(*arguments: str, timeout_s: float = 120) -> str:
        return run([*compose_command, *arguments], compose_environment, timeout_s)

    compose("build", timeout_s=BUILD_TIMEOUT_S)
    try:
        started = time.monotonic()
        compose("up", "--detach", "--no-build")
        identity = compose("ps", "--quiet", "serve").strip()
        wait_until_healthy(identity)
        print(f"healthy {time.monotonic() - started:.1f} s after `up`")
        yield inspect(identity)
    finally:
        compose("down", "--volumes", "--timeout", "20")


def test_built_in_model_finds_elements_in_a_screenshot(
    container: dict[str, object], compose_environment: dict[str, str]
) -> None:
    url = f"http://127.0.0.1:{compose_environment['CLQ_PORT']}/v1/detect"
    png = (SCREENS / "dashboard.png").read_bytes()
    answer = httpx.post(url, files={"image": ("dashboard.png", png)}, timeout=60, trust_env=False)

    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["image"]["width"], found["image"]["height"]) == (1280, 800)
    assert found["detections"]
    for x1, y1, x2, y2 in (detection["box"] for detection in found["detections"]):
        assert 0 <= x1 < x2 <= 1280
        assert 0 <= y1 < y2 <= 800
    print(f"{len(found['detections'])} detections, {found['timing_ms']}")


def test_every_process_runs_as_uid_10001_without_capabilities(
    container: dict[str, object],
) -> None:
    status = inside(container, "import pathlib; print(pathlib.Path('/proc/1/status').read_text())")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["10001"] * 4
    assert fields["Gid"].split() == ["10001"] * 4
    assert int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    ours = "import os; print(os.getuid(), os.getgroups())"
    assert inside(container, ours).split()[0] == "10001"


def test_only_tmp_can_be_written(container: dict[str, object]) -> None:
    attempt = (
        "import errno\n"
        "for folder in ('/', '/opt/clq', '/var/tmp', '/home', '/tmp'):\n"
        "    try:\n"
        "        open(folder + '/probe', 'w').close(); print(folder, 'written')\n"
        "    except OSError as err:\n"
        "        print(folder, errno.errorcode[err.errno])\n"
    )
    results = dict(line.split() for line in inside(container, attempt).splitlines())
    assert results.pop("/tmp") == "written"
    assert set(results.values()) == {"EROFS"}


def test_the_limits_of_the_compose_file_reach_the_engine(container: dict[str, object]) -> None:
    limits = container["HostConfig"]
    assert isinstance(limits, dict)
    assert limits["ReadonlyRootfs"] is True
    assert limits["CapDrop"] == ["ALL"]
    assert limits["Memory"] > 0
    assert limits["PidsLimit"] > 0
    assert limits["Init"] is True
    published = limits["PortBindings"]
    assert list(published) == ["8000/tcp"]  # not the admin listener
    assert [binding["HostIp"] for binding in published["8000/tcp"]] == ["127.0.0.1"]


def test_the_admin_listener_answers_inside_the_container(container: dict[str, object]) -> None:
    ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8001/metrics').read())"
    assert "clq_model_info" in inside(container, ask)


def test_the_probe_of_the_container_is_cheap(container: dict[str, object]) -> None:
    measure = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'clq_serve.healthcheck'], check=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)\n"
    )
    used_s = float(inside(container, measure).split()[-1])
    print(f"one probe: {used_s:.3f} s of processor time")
    assert used_s < 1.0


def test_onnx_runtime_is_told_not_to_report_to_its_maker(container: dict[str, object]) -> None:
    assert inside(container, "import os; print(os.environ['ORT_DISABLE_TELEMETRY'])").strip() == "1"
    text = logs(str(container["Id"]))
    assert "ready" in text
    assert (
        "telemetry" not in text.lower()
    )  # it warns that the read-only root has no room for its id


def test_the_image_adds_at_most_350_mb_to_its_base(container: dict[str, object]) -> None:
    dockerfile = (ROOT / "docker" / "serve.Dockerfile").read_text()
    declared = re.search(r"^ARG BASE=(\S+)$", dockerfile, re.MULTILINE)
    assert declared, "docker/serve.Dockerfile: no line ARG BASE=..."
    base = declared[1]
    if not succeeds("docker", "image", "inspect", base):
        run(["docker", "pull", "--quiet", base], timeout_s=600)  # BuildKit keeps it to itself
    added = layers_bytes(str(container["Image"])) - layers_bytes(base)
    print(f"added to {base}: {added / 1e6:.0f} MB")
    assert 0 < added <= MAX_ADDED_BYTES


def index_variables() -> dict[str, str]:
    """PIP_* variables for the index that pip is set up for here; files are out of reach there."""
    pip = [sys.executable, "-m", "pip"]
    listing = run([*pip, "config", "list"]) if succeeds(*pip, "--version") else ""
    found: dict[str, str] = {}
    for line in listing.splitlines():
        key, _, quoted = line.partition("=")
        option = key.rpartition(".")[2]
        values = [v for v in quoted.strip("'\"").replace("\\n", " ").split() if "file:" not in v]
        if option in ("index-url", "extra-index-url", "trusted-host") and values:
            found[f"PIP_{option.upper().replace('-', '_')}"] = " ".join(values)
    return found


def succeeds(*command: str) -> bool:
    """Whether the command exists and exits with 0."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def wait_until_healthy(identity: str) -> None:
    """Returns once Docker calls the container healthy; fails with its log if it never does."""
    deadline = time.monotonic() + HEALTHY_TIMEOUT_S
    while time.monotonic() < deadline:
        state = inspect(identity)["State"]
        assert isinstance(state, dict)
        if state["Health"]["Status"] == "healthy":
            return
        if state["Restarting"] or state["Status"] == "exited":
            break
        time.sleep(0.5)
    pytest.fail(f"never healthy: {json.dumps(state)}\n{logs(identity)}")


def inspect(identity: str) -> dict[str, object]:
    """`docker inspect` of one container."""
    (found,) = json.loads(run(["docker", "inspect", identity]))
    return found


def logs(identity: str) -> str:
    """What the container has printed on both streams."""
    command = ["docker", "logs", identity]
    joined = subprocess.STDOUT
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=joined, text=True).stdout


def inside(container: dict[str, object], program: str) -> str:
    """What a Python program prints inside the container, run as its user."""
    return run(["docker", "exec", str(container["Id"]), "python", "-c", program])


def layers_bytes(image: str) -> int:
    """The bytes of all layers, unpacked."""
    sizes = run(["docker", "history", "--human=false", "--format", "{{.Size}}", image])
    return sum(int(size) for size in sizes.split())


def run(
    command: list[str], environment: dict[str, str] | None = None, timeout_s: float = 120
) -> str:
    """The standard output of a command that succeeds; fails with all its output if it does not."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout
