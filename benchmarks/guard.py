"""What guarding connections and noting requests costs:  python benchmarks/guard.py [--requests N]

One trivial application in three dresses, each asked over one kept connection, by turns: as uvicorn
serves it, with the guard of clq_serve.slow_clients, and with the request log and counts besides.
"""

import argparse
import functools
import logging
import socket
import statistics
import threading
import time
from types import SimpleNamespace
from typing import Any

import uvicorn

from clq_serve.metrics import Metrics
from clq_serve.request_log import RequestLog
from clq_serve.slow_clients import ConnectionLimits, GuardedConnection

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: benchmark\r\nAccept: */*\r\n\r\n"
ROUNDS = 15


def main() -> None:
    """Prints the median microseconds of a request in each dress."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="in each of the rounds")
    requests = parser.parse_args().requests
    logging.getLogger("clq_serve").setLevel(logging.WARNING)
    service = SimpleNamespace(draining=False, metrics=Metrics())
    limits = ConnectionLimits(10.0, 10.0, 1024.0, 65536, 1000)
    guard = functools.partial(GuardedConnection, limits=limits, service=lambda: service)
    owner = SimpleNamespace(state=SimpleNamespace(service=service))

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = owner
        await RequestLog(answer)(scope, receive, send)

    dresses = {
        "uvicorn": start(answer, "httptools"),
        "guarded": start(answer, guard),
        "guarded, counted, noted": start(noted, guard),
    }
    seconds: dict[str, list[float]] = {name: [] for name in dresses}
    for _ in range(ROUNDS):
        for name, connection in dresses.items():
            seconds[name].append(ask(connection, requests) / requests)
    plain = statistics.median(seconds["uvicorn"])
    print(f"{'':<26}{'us a request':>14}{'ratio':>8}   (median of {ROUNDS} rounds)")
    for name, measured in seconds.items():
        median = statistics.median(measured)
        print(f"{name:<26}{1e6 * median:>14.1f}{median / plain:>8.3f}")


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """The application: two bytes."""
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


def start(app: Any, protocol: Any) -> socket.socket:
    """A connection to a server with that protocol, which lives as long as this program."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=600,  # the others wait while one is asked
    )
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, args=[[listener]], daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return socket.create_connection(listener.getsockname(), timeout=60)


def ask(connection: socket.socket, requests: int) -> float:
    """Seconds for that many requests, one after another."""
    began = time.perf_counter()
    for _ in range(requests):
        connection.sendall(REQUEST)
        received = b""
        while not received.endswith(b"\r\n\r\nok"):
            chunk = connection.recv(4096)
            assert chunk, "the server closed the connection"
            received += chunk
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
