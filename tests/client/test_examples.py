"""The programs of client/examples against a real service, as a user would run them."""

import functools
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "client/examples"
SCREENS = ROOT / "tests/data/screens"
NAMES = ("checkout.png", "dashboard.png", "docs.png")
SERVE = [sys.executable, "-c", "from clq_serve.cli import main; main()", "run"]
TIMEOUT_S = 60
FAILED = "document.getElementById('state').textContent.startsWith('Failed')"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_for(condition, process):
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, "the process has ended"
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def page_origin():
    """The origin of a file server over the examples: another port is another origin."""
    handler = functools.partial(_Quiet, directory=EXAMPLES)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def service_url(page_origin):
    """`clq-serve run` with the built-in model, as a process; allows the page's origin."""
    port = free_port()
    process = subprocess.Popen(
        [*SERVE, "--port", str(port), "--set", f"cors_origins={page_origin}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"

    def ready():
        try:
            return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(ready, process)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def run(*command, url, **variables):
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | {"CLQ_URL": url} | variables,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@pytest.fixture(scope="module")
def expected(service_url):
    """Name of the screen -> (label, score) of its detections, asked for with httpx alone."""
    found = {}
    for name in NAMES:
        answer = httpx.post(
            f"{service_url}/v1/detect?score=0.3",
            content=(SCREENS / name).read_bytes(),
            headers={"Content-Type": "application/octet-stream"},
            timeout=TIMEOUT_S,
            trust_env=False,
        )
        found[name] = [(d["label"], round(d["score"], 3)) for d in answer.json()["detections"]]
        assert found[name]
    return found


def test_the_curl_script_prints_what_it_finds_and_why_it_did_not(service_url, expected, tmp_path):
    done = run(EXAMPLES / "detect.sh", SCREENS / NAMES[0], url=service_url, CLQ_API_KEY="a-key")
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    assert [(label, float(score)) for label, score in lines] == expected[NAMES[0]]
    (tmp_path / "no.png").write_text("no image")
    done = run(EXAMPLES / "detect.sh", tmp_path / "no.png", url=service_url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "unsupported_image" in done.stderr


@pytest.mark.parametrize("program", ["detect_sync.py", "detect_async.py"])
def test_the_python_examples_print_what_they_find_and_go_on_after_a_failure(
    service_url, expected, tmp_path, program
):
    (tmp_path / "no.png").write_text("no image")
    images = [SCREENS / NAMES[0], tmp_path / "no.png", SCREENS / NAMES[1]]
    done = run(sys.executable, EXAMPLES / program, *images, url=service_url)
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    for name in NAMES[:2]:
        ours = [(label, float(score)) for path, label, score, *_ in found if path.endswith(name)]
        assert ours == expected[name]
    assert done.stderr.startswith(f"{tmp_path / 'no.png'}: 415 unsupported_image")


@pytest.mark.slow
def test_the_folder_watch_takes_what_arrives_once_and_never_half_a_file(
    service_url, expected, tmp_path
):
    incoming, results = tmp_path / "incoming", tmp_path / "results"
    incoming.mkdir()
    shutil.copy(SCREENS / NAMES[0], incoming)

    def start():
        return subprocess.Popen(
            [sys.executable, EXAMPLES / "watch_folder.py", incoming, results],
            env=os.environ | {"CLQ_URL": service_url},
            stdout=subprocess.PIPE,
            text=True,
        )

    watch = start()
    try:
        wait_for((results / f"{NAMES[0]}.json").exists, watch)
        data = (SCREENS / NAMES[1]).read_bytes()
        with (incoming / NAMES[1]).open("wb") as slow:  # copied slowly, in 24 pieces
            for begin in range(0, len(data), len(data) // 23):
                slow.write(data[begin : begin + len(data) // 23])
                slow.flush()
                assert not (results / f"{NAMES[1]}.error.json").exists()
                time.sleep(0.05)
        (incoming / "no.png").write_text("no image")
        wait_for((results / f"{NAMES[1]}.json").exists, watch)
        wait_for((results / "no.png.error.json").exists, watch)
    finally:
        watch.kill()
        first, _ = watch.communicate()
    shutil.copy(SCREENS / NAMES[2], incoming)
    watch = start()  # again, after kill -9: only what is new is sent
    try:
        wait_for((results / f"{NAMES[2]}.json").exists, watch)
    finally:
        watch.kill()
        second, _ = watch.communicate()
    for name in NAMES:
        answer = json.loads((results / f"{name}.json").read_text())
        found = [(d["label"], round(d["score"], 3)) for d in answer["detections"]]
        assert found == expected[name]
    assert json.loads((results / "no.png.error.json").read_text())["status"] == 415
    assert first.count("->") == 3
    assert NAMES[0] not in second
    assert not list(results.glob(".*"))


@pytest.mark.slow
def test_the_job_of_a_bucket_runs_its_command_over_a_folder(service_url, tmp_path):
    (container,) = job()["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["/bin/sh", "-ec"]
    (script,) = container["args"]
    folders = {m["mountPath"]: tmp_path / m["mountPath"][1:] for m in container["volumeMounts"]}
    assert set(folders) == {"/images", "/results", "/scratch"}
    for mounted, folder in folders.items():
        folder.mkdir()
        assert mounted in script
        script = re.sub(rf"(?<!\S){mounted}\b", str(folder), script)
    shutil.copytree(SCREENS, folders["/images"] / "a", ignore=shutil.ignore_patterns("*.html"))
    (folders["/images"] / "no.png").write_text("no image")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "clq-client").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -c "from clq_client.cli import main; main()" "$@"\n'
    )
    (programs / "clq-client").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    done = run(*container["command"], script, url=service_url, PATH=path)
    assert done.returncode == 0, done.stderr
    lines = (folders["/results"] / "results.jsonl").read_text().splitlines()
    told = [json.loads(line)["ok"] for line in lines]
    assert sorted(told) == [False, True, True, True]
    done = run(*container["command"], script, url=service_url, PATH=path)  # the next pod
    assert done.returncode == 0, done.stderr
    assert (folders["/results"] / "results.jsonl").read_text().splitlines() == lines


def job():
    return yaml.safe_load((EXAMPLES / "batch_job.yaml").read_text())


def test_the_job_is_what_kubernetes_takes_and_locks_its_container_up():
    found = job()
    assert (found["apiVersion"], found["kind"]) == ("batch/v1", "Job")
    pod = found["spec"]["template"]["spec"]
    assert pod["restartPolicy"] in ("OnFailure", "Never")  # a Job takes no other
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    names = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == names
    images = next(m for m in container["volumeMounts"] if m["mountPath"] == "/images")
    assert images["readOnly"] is True
    assert {v["name"] for v in container["env"]} == {"CLQ_URL", "CLQ_API_KEY"}


@pytest.mark.slow
def test_a_page_of_an_allowed_origin_detects_by_fetch(service_url, page_origin, expected, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as player:
        try:
            browser = player.chromium.launch(executable_path=shutil.which("chromium"))
        except playwright.Error as err:
            pytest.skip(f"no browser: {err.message.splitlines()[0]}")
        page = browser.new_page()
        page.goto(f"{page_origin}/fetch.html?service={service_url}")
        page.set_input_files("#file", SCREENS / NAMES[0])
        page.wait_for_selector("#found li", timeout=TIMEOUT_S * 1000)
        items = [item.rsplit(" ", 1) for item in page.locator("#found li").all_inner_texts()]
        assert [(label, float(score)) for label, score in items] == expected[NAMES[0]]
        assert page.inner_text("#state") == f"{len(items)} detections"
        (tmp_path / "no.png").write_text("no image")
        page.set_input_files("#file", tmp_path / "no.png")
        page.wait_for_function(FAILED)
        assert "image" in page.inner_text("#state")
        # The same page under another name is another origin, which the service does not allow.
        page.goto(
            f"{page_origin.replace('127.0.0.1', 'localhost')}/fetch.html?service={service_url}"
        )
        page.set_input_files("#file", SCREENS / NAMES[0])
        page.wait_for_function(FAILED)
        browser.close()
