"""The command clq-serve as a process of its own."""

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from service_process import PATIENCE_S, command, environment, running


def assert_one_line_of_error(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1
    assert done.stderr.startswith("clq-serve: ")
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr


def test_run_says_what_it_is_answers_and_ends_at_sigterm(tiny_bundle: Path) -> None:
    with running("--bundle", str(tiny_bundle), "--threads", "1") as service:
        process, url, lines = service.process, service.url, service.lines
        assert lines[0].startswith("settings: host=127.0.0.1 port=0 ")
        assert re.search(r"model: tiny/1 sha256:[0-9a-f]{12} on cpu: 1 lane of 1 thread ", lines[1])
        found = re.fullmatch(r"admin: (http://127\.0\.0\.1:\d+/metrics)", lines[2])
        assert found, lines
        assert httpx.get(found[1], timeout=PATIENCE_S).status_code == 200
        assert httpx.get(f"{url}/metrics", timeout=PATIENCE_S).status_code == 404
        assert "curl -F image=@" in lines[3]
        assert httpx.get(f"{url}/readyz", timeout=PATIENCE_S).status_code == 200
        probe = command("healthcheck", "--url", f"{url}/readyz", "--timeout-s", "60")
        assert (probe.returncode, probe.stderr) == (0, "")
        from_port = healthcheck(CLQ_SERVE_PORT=url.rpartition(":")[2])
        assert (from_port.returncode, from_port.stderr) == (0, "")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert "Traceback" not in service.logged()


def test_a_draining_service_answers_not_ready_until_a_second_sigterm(
    tiny_bundle: Path,
) -> None:
    options = ("--bundle", str(tiny_bundle), "--threads", "1", "--set", "drain_s=300")
    with running(*options) as service:
        process, url = service.process, service.url
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        while (ready := httpx.get(f"{url}/readyz", timeout=PATIENCE_S)).status_code == 200:
            assert time.monotonic() < deadline
        assert ready.json()["code"] == "draining"
        assert ready.headers["retry-after"] == "1"
        assert command("healthcheck", "--url", f"{url}/readyz", "--timeout-s", "60").returncode == 1
        assert httpx.get(f"{url}/healthz", timeout=PATIENCE_S).status_code == 200
        again = httpx.get(f"{url}/v1/labels", timeout=PATIENCE_S)
        assert (again.status_code, again.headers["connection"]) == (200, "close")
        process.send_signal(signal.SIGTERM)  # the second one does not wait for the drain
        assert process.wait(PATIENCE_S) == 0


def wait_until_refused(address: tuple[str, int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(address, timeout=PATIENCE_S).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    pytest.fail(f"{address} still accepts connections")


def test_sigterm_lets_a_request_in_progress_finish(tiny_bundle: Path) -> None:
    with running("--bundle", str(tiny_bundle), "--threads", "1") as service:
        process, url = service.process, service.url
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        header = struct.pack("<IIIIiiHHIIiiII", 66, 0, 54, 40, 1, 3, 1, 24, 0, 12, 0, 0, 0, 0)
        body = b"BM" + header + bytes(12)  # a bitmap of 1 x 3 pixels
        lines = ["POST /v1/detect HTTP/1.1", "Host: x", "Content-Type: image/bmp"]
        lines += [f"Content-Length: {len(body)}", "Expect: 100-continue", "", ""]
        with socket.create_connection(address, timeout=PATIENCE_S) as connection:
            connection.sendall("\r\n".join(lines).encode())
            assert connection.recv(10_000).startswith(b"HTTP/1.1 100 ")  # the service reads it now
            process.send_signal(signal.SIGTERM)
            wait_until_refused(address)
            connection.sendall(body)
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200 ")
        assert process.wait(PATIENCE_S) == 0


def healthcheck(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clq_serve.healthcheck", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment(**more),
    )


def test_the_healthcheck_imports_nothing_outside_the_standard_library() -> None:
    code = (
        "import sys, clq_serve.healthcheck; "
        "assert not {'typer', 'pydantic', 'numpy', 'urllib.request'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_S).returncode == 0


def test_the_healthcheck_reads_the_port_from_the_configuration_file(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (tmp_path / "clq.toml").write_text(f"port = {port}\n")
    done = healthcheck(CLQ_SERVE_CONFIG=str(tmp_path / "clq.toml"))
    assert_one_line_of_error(done, "refused")


def test_the_settings_are_listed_without_starting_anything() -> None:
    done = command("settings")
    assert done.returncode == 0
    assert "#port = 8000\n" in done.stdout


def test_check_takes_a_device_and_never_another_one_instead(tiny_bundle: Path) -> None:
    done = command("check", str(tiny_bundle), "--device", "plan:0")
    assert_one_line_of_error(done, "device plan:0: ")
    done = command("check", str(tiny_bundle), "--device", "gpu")
    assert_one_line_of_error(done, "--device: 'gpu'", "accepted: cpu, or cuda:N")


def test_check_names_the_good_bundle(tiny_bundle: Path) -> None:
    done = command("check", str(tiny_bundle))
    assert done.returncode == 0
    assert re.match(
        r"ok: tiny/1 sha256:[0-9a-f]{64} 3 classes, 2 golden examples reproduced", done.stdout
    )


def test_a_bad_bundle_is_one_line(bundle_copy: Path) -> None:
    (bundle_copy / "model.onnx").write_bytes(b"other")
    assert_one_line_of_error(command("check", str(bundle_copy)), "model.onnx", "has 5 bytes")
    assert_one_line_of_error(
        command("run", "--port", "0", "--bundle", str(bundle_copy)), "model.onnx"
    )


def test_a_missing_bundle_is_one_line(tmp_path: Path) -> None:
    done = command("run", "--port", "0", "--bundle", str(tmp_path / "none"))
    assert_one_line_of_error(done, "none", "there is no such folder")


def test_a_port_in_use_is_one_line(tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = command("run", "--port", port, "--bundle", str(tiny_bundle))
    assert_one_line_of_error(done, f"127.0.0.1 port {port}", "--port")


@pytest.mark.parametrize(
    ("arguments", "variables", "word"),
    [
        (("run",), {"CLQ_SERVE_PROT": "1"}, "CLQ_SERVE_PROT: there is no such setting"),
        (("run",), {"CLQ_SERVE_PORT": "x"}, "CLQ_SERVE_PORT: 'x'"),
        (("run", "--threads", "0"), {}, "--threads"),
        (("run", "--host", "no.such.host.invalid"), {}, "cannot listen"),
        (("healthcheck", "--url", "http://127.0.0.1:9/readyz"), {}, "127.0.0.1:9"),
        (("healthcheck", "--url", "nonsense"), {}, "nonsense"),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: tuple[str, ...], variables: dict[str, str], word: str
) -> None:
    assert_one_line_of_error(command(*arguments, **variables), word)


def test_version_and_help() -> None:
    assert command("--version").stdout.strip() == "clq-serve 0.1.0"
    text = command("--help").stdout
    assert all(name in text for name in ("run", "check", "healthcheck"))


def test_importing_the_package_loads_nothing_else() -> None:
    code = (
        "import sys, clq_serve; "
        "assert not {'numpy', 'PIL', 'fastapi', 'pydantic', 'onnxruntime'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_S).returncode == 0


def test_preprocessing_needs_pillow_and_numpy_only() -> None:
    code = (
        "import sys, clq_serve.preprocess; "
        "assert not {'fastapi', 'pydantic', 'onnxruntime', 'torch'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_S).returncode == 0


def test_importing_the_package_switches_off_the_telemetry_of_onnx_runtime() -> None:
    program = "import clq_serve.engine, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
