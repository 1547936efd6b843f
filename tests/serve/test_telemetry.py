"""Spans, as a receiver of OTLP over HTTP gets them."""

import gzip
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from service_process import PATIENCE_S, running

from clq_serve.telemetry import Telemetry

SCREEN = Path(__file__).parents[1] / "data" / "screens" / "dashboard.png"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

Received = queue.Queue[Span]


@pytest.fixture
def receiver() -> Iterator[tuple[str, Received]]:
    """URL of a receiver of OTLP, and the spans that it gets."""
    spans: Received = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        spans.put(span)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
        thread.join(PATIENCE_S)


def collect(spans: Received, *names: str) -> dict[str, Span]:
    """The spans of these names, once all have come."""
    found: dict[str, Span] = {}
    while not set(names) <= set(found):
        span = spans.get(timeout=PATIENCE_S)
        found[span.name] = span
    return found


def test_a_request_is_a_span_with_its_stages_below_the_callers(
    tiny_bundle: Path, receiver: tuple[str, Received]
) -> None:
    url, spans = receiver
    options = ["--bundle", str(tiny_bundle), "--threads", "1", "--set", f"otel_endpoint={url}"]
    with running(*options, OTEL_BSP_SCHEDULE_DELAY="50") as service:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        files = {"image": SCREEN.read_bytes()}
        answer = httpx.post(
            f"{service.url}/v1/detect", files=files, headers=headers, timeout=PATIENCE_S
        )
        assert answer.status_code == 200
        found = collect(spans, "POST /v1/detect", "decode", "queue", "infer", "post", "encode")
        request = found["POST /v1/detect"]
        assert request.trace_id.hex() == TRACE
        assert request.parent_span_id.hex() == PARENT
        assert answer.headers["traceparent"] == f"00-{TRACE}-{request.span_id.hex()}-01"
        attributes = {a.key: a.value for a in request.attributes}
        assert attributes["http.response.status_code"].int_value == 200
        assert attributes["http.route"].string_value == "/v1/detect"
        ends = 0
        for name in ("decode", "queue", "infer", "post", "encode"):
            stage = found[name]
            assert (stage.trace_id, stage.parent_span_id) == (request.trace_id, request.span_id)
            assert request.start_time_unix_nano <= stage.start_time_unix_nano
            assert ends <= stage.start_time_unix_nano <= stage.end_time_unix_nano
            ends = stage.end_time_unix_nano
        assert ends == request.end_time_unix_nano
        assert httpx.get(f"{service.url}/none", timeout=PATIENCE_S).status_code == 404
        alone = collect(spans, "GET none")["GET none"]
        assert alone.parent_span_id == b""
        assert alone.trace_id.hex() != TRACE


def test_the_standard_variable_names_a_receiver_too(
    receiver: tuple[str, Received], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, spans = receiver
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    telemetry = Telemetry.configured(None)
    assert telemetry is not None
    span, traceparent = telemetry.begin("", "")
    telemetry.end(span, "GET", "/a", 503, {})
    telemetry.close()
    sent = collect(spans, "GET /a")["GET /a"]
    assert sent.trace_id.hex() in traceparent
    assert sent.status.code == Status.STATUS_CODE_ERROR


def test_without_a_receiver_there_is_no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert Telemetry.configured(None) is None


def test_a_service_without_the_packages_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ImportError('none')")
    code = "from clq_serve.telemetry import Telemetry; Telemetry.configured('http://x')"

    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert "pip install 'clq-serve[otel]'" in done.stderr
