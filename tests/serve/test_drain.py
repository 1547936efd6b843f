"""What happens to requests when the service is told to stop."""

import io
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
from PIL import Image
from service_process import PATIENCE_S, Running, running


def square() -> bytes:
    """A red square as a PNG file."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (255, 0, 0)).save(file, "PNG")
    return file.getvalue()


class Client(threading.Thread):
    """Asks on one connection as long as the service is ready, like behind a load balancer."""

    def __init__(self, service: Running, ready: threading.Event) -> None:
        super().__init__()
        self.statuses: list[int] = []
        self.failures: list[str] = []
        self._service = service
        self._ready = ready

    def run(self) -> None:
        image = square()
        with httpx.Client(timeout=PATIENCE_S) as client:
            while self._ready.is_set():
                try:
                    answer = client.post(f"{self._service.url}/v1/detect", files={"image": image})
                    self.statuses.append(answer.status_code)
                except httpx.HTTPError as err:
                    self.failures.append(repr(err))


def test_no_request_fails_when_a_service_under_load_is_told_to_stop(tiny_bundle: Path) -> None:
    options = ("--bundle", str(tiny_bundle), "--threads", "1", "--set", "drain_s=2")
    with running(*options) as service:
        ready = threading.Event()
        ready.set()
        clients = [Client(service, ready) for _ in range(4)]
        for client in clients:
            client.start()
        deadline = time.monotonic() + PATIENCE_S
        while sum(len(client.statuses) for client in clients) < 40:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        before = sum(len(client.statuses) for client in clients)
        service.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{service.url}/readyz", timeout=PATIENCE_S).status_code == 200:
            assert time.monotonic() < deadline
        assert httpx.get(f"{service.url}/healthz", timeout=PATIENCE_S).status_code == 200
        assert httpx.get(f"{service.admin}/healthz", timeout=PATIENCE_S).status_code == 200
        after = sum(len(client.statuses) for client in clients)
        while sum(len(client.statuses) for client in clients) < after + 8:  # it still answers
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ready.clear()
        for client in clients:
            client.join(PATIENCE_S)
        assert service.process.wait(PATIENCE_S) == 0
    statuses = [status for client in clients for status in client.statuses]
    assert [failure for client in clients for failure in client.failures] == []
    assert set(statuses) == {200}
    assert len(statuses) > before


def test_a_connection_whose_request_is_on_its_way_is_not_closed(tiny_bundle: Path) -> None:
    with running("--bundle", str(tiny_bundle), "--threads", "1") as service:
        with socket.create_connection(service.address, timeout=PATIENCE_S) as connection:
            connection.sendall(b"GET /v1/labels HTTP/1.1\r\n")
            deadline = time.monotonic() + PATIENCE_S
            while "clq_connections 2.0" not in httpx.get(f"{service.admin}/metrics").text:
                assert time.monotonic() < deadline
            service.process.send_signal(signal.SIGTERM)
            while not_refused(service.address):
                assert time.monotonic() < deadline
            connection.sendall(b"Host: x\r\n\r\n")
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in answer.lower()
        assert service.process.wait(PATIENCE_S) == 0


def not_refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=PATIENCE_S).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return False
    return True
