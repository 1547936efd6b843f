"""What the README promises: its session in a fresh clone, its other commands, its layout."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
READY_TIMEOUT_S = 600
MAX_BOX_PX, MAX_SCORE = 0.5, 1e-3


def commands(prefix: str) -> list[tuple[str, str]]:
    """(command, printed output) of the README's console blocks whose command starts with prefix."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            if command.startswith(prefix):
                found.append((command, output))
    return found


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone of what is committed, without any virtual environment."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing to clone")
    folder = tmp_path_factory.mktemp("fresh") / "clq"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    return folder


@pytest.fixture(scope="module")
def service_url(clone: Path) -> Iterator[str]:
    """The README's first command on a free port, started as a user would."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ((command, _),) = commands("make serve")
    log = (clone.parent / "serve.log").open("w+")
    started = time.monotonic()
    process = subprocess.Popen(
        [*shlex.split(command), f"PORT={port}"],
        cwd=clone,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, clone.parent / "serve.log")
        print(f"`{command}` answered {time.monotonic() - started:.0f} s after it was typed")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        log.close()


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"not ready within {READY_TIMEOUT_S} s\n{log.read_text()}")


@pytest.mark.slow
def test_the_first_command_installs_no_torch(service_url: str, clone: Path) -> None:
    packages = {p.name for p in clone.glob(".venv-serve/lib/python*/site-packages/*")}
    assert "onnxruntime" in packages
    assert "torch" not in packages


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(commands("curl"))))
def test_curl_prints_what_the_readme_shows(service_url: str, clone: Path, number: int) -> None:
    command, shown = commands("curl")[number]
    command = command.replace("http://127.0.0.1:8000", service_url)
    done = subprocess.run(
        shlex.split(command), cwd=clone, capture_output=True, text=True, check=True
    )
    found, expected = (json.loads(text)["detections"] for text in (done.stdout, shown))
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["box"] == pytest.approx(theirs["box"], abs=MAX_BOX_PX)
        assert ours["score"] == pytest.approx(theirs["score"], abs=MAX_SCORE)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(commands(".venv/bin/clq-client"))))
def test_the_client_commands_of_the_readme_succeed(
    service_url: str, clone: Path, number: int
) -> None:
    command, _ = commands(".venv/bin/clq-client")[number]
    command = command.replace(".venv/bin", str(Path(sys.executable).parent))
    environment = os.environ | {"CLQ_URL": service_url}
    done = subprocess.run(
        shlex.split(command), cwd=clone, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs(service_url: str, clone: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    environment = os.environ | {"CLQ_URL": service_url}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=clone, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 0


def test_ci_runs_the_test_command_of_the_readme() -> None:
    ((command, _),) = commands("make test")
    assert command == "make test"
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), re.MULTILINE)


def test_the_table_of_folders_names_every_folder() -> None:
    listed = set(re.findall(r"^\| `([a-z]+)/`", README, re.MULTILINE))
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = {name.split("/")[0] for name in tracked if "/" in name}
    assert listed == {name for name in folders if not name.startswith(".")}


def test_every_link_of_the_documents_leads_to_a_file() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
