"""The lines of the log, from a real process."""

import contextlib
import json
import logging
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from key_files import entry, write
from service_process import PATIENCE_S, Running, running

from clq_serve.logs import JsonLines, TextLines

Line = dict[str, object]
TRACE = "0af7651916cd43dd8448eb211c80319c"
SCREEN = Path(__file__).parents[1] / "data" / "screens" / "dashboard.png"


@contextlib.contextmanager
def logged(tiny_bundle: Path, *options: str) -> Iterator[tuple[Running, list[str]]]:
    """A service, and the lines that it has logged once the block is left."""
    lines: list[str] = []
    with running("--bundle", str(tiny_bundle), "--threads", "1", *options) as service:
        yield service, lines
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE_S) == 0
        lines += service.logged().splitlines()


def by_id(lines: list[str]) -> dict[object, Line]:
    parsed = [json.loads(line) for line in lines]
    return {line["request_id"]: line for line in parsed if line["message"] == "request"}


def test_json_lines_tell_each_request(tiny_bundle: Path, tmp_path: Path) -> None:
    write(tmp_path / "keys.toml", entry("cam", "infer"), entry("prom", "metrics"))
    options = ["log_format=json", f"keys={tmp_path / 'keys.toml'}", "stall_timeout_s=0.5"]
    with logged(tiny_bundle, *(o for option in options for o in ("--set", option))) as (
        service,
        lines,
    ):
        image = SCREEN.read_bytes()

        def ask(request_id: str, content: bytes, key: str) -> httpx.Response:
            headers = {
                "X-Request-ID": request_id,
                "X-API-Key": key,
                "Content-Type": "image/png",
                "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
            }
            url = f"{service.url}/v1/models/tiny/detect"
            return httpx.post(url, content=content, headers=headers, timeout=PATIENCE_S)

        good = ask("good", image, "cam")
        assert good.headers["traceparent"] == f"00-{TRACE}-b7ad6b7169203331-01"
        ask("bad", b"no image", "cam")
        ask("stranger", image, "no-key-of-ours")
        slow = b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nX-API-Key: cam\r\nX-Request-ID: slow\r\n"
        slow += b"Content-Type: image/png\r\nContent-Length: 100\r\n\r\n"
        with socket.create_connection(service.address, timeout=PATIENCE_S) as connection:
            connection.sendall(slow)
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        with socket.create_connection(service.address, timeout=PATIENCE_S) as connection:
            connection.sendall(slow.replace(b"slow", b"left"))
        wait_until_counted(service, 'route="/v1/detect",status="499"')
    found = by_id(lines)
    line = found["good"]
    assert line["status"] == 200
    assert (line["method"], line["path"]) == ("POST", "/v1/models/tiny/detect")
    assert line["route"] == "/v1/models/{name}/detect"
    assert (line["client"], line["key"], line["trace_id"]) == ("127.0.0.1", "cam", TRACE)
    assert line["bytes_in"] == len(image)
    assert line["bytes_out"] == len(good.content)
    assert line["detections"] == len(good.json()["detections"])
    assert str(line["model"]).startswith("sha256:")
    stages = line["stages_ms"]
    assert isinstance(stages, dict)
    assert set(stages) >= {"decode", "queue", "infer", "post"}
    assert found["bad"]["status"] == 415
    assert (found["stranger"]["status"], found["stranger"]["key"]) == (401, None)
    assert found["slow"]["status"] == 408
    assert found["left"]["status"] == 499
    assert "no-key-of-ours" not in "\n".join(lines)


def wait_until_counted(service: Running, labels: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    headers = {"X-API-Key": "prom"}
    while True:
        answer = httpx.get(f"{service.admin}/metrics", headers=headers, timeout=PATIENCE_S)
        if f"clq_requests_total{{{labels}}}" in answer.text:
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_text_lines_have_the_same_fields_and_probes_none(tiny_bundle: Path) -> None:
    with logged(tiny_bundle) as (service, lines):
        for path in ("/healthz", "/readyz", "/startupz", "/v2/health/live"):
            assert httpx.get(service.url + path, timeout=PATIENCE_S).status_code == 200
        answer = httpx.get(f"{service.url}/a%20b%0Ac", headers={"X-Request-ID": "one"})
        assert answer.status_code == 404
    (line,) = lines
    assert " request request_id=one client=127.0.0.1 method=GET " in line
    assert r' path="/a b\nc" route=none status=404 ' in line


def record(message: str, fields: Line) -> logging.LogRecord:
    made = logging.LogRecord("clq", logging.INFO, "", 0, message, (), None)
    made.fields = fields
    return made


@pytest.mark.parametrize("value", ["a b", "a\nb", 'a" b=c', "", "\u2028"])
def test_what_a_stranger_sends_cannot_forge_a_line_or_a_field(value: str) -> None:
    text = TextLines().format(record("m", {"path": value, "status": 1}))
    assert len(text.splitlines()) == 1
    assert text.endswith(f"path={json.dumps(value)} status=1")
    parsed = json.loads(JsonLines().format(record("m", {"path": value})))
    assert parsed["path"] == value
    assert len(JsonLines().format(record("m", {"path": value})).splitlines()) == 1


def test_a_failure_is_one_json_line_with_its_traceback() -> None:
    try:
        raise ValueError("broken")
    except ValueError as err:
        made = logging.LogRecord("clq", logging.ERROR, "", 0, "m", (), (type(err), err, None))
    parsed = json.loads(JsonLines().format(made))
    assert parsed["level"] == "error"
    assert "ValueError: broken" in parsed["exception"]
