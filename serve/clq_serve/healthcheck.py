"""Whether the service of this environment is ready: python -m clq_serve.healthcheck [URL]

For Docker's HEALTHCHECK, which runs every few seconds: only the standard library is imported, and
of that not urllib, whose import alone takes longer than the rest.
"""

import os
import socket
import sys
import tomllib

DEFAULT_PORT = 8000


def probe(url: str = "", timeout_s: float = 5.0) -> int:
    """0 if a GET of the URL answers 200, else 1; says on stdout or stderr what it answered.

    url  http://HOST:PORT/PATH; "" = /readyz on the port that CLQ_SERVE_PORT or the file
         CLQ_SERVE_CONFIG names
    """
    try:
        target = url or f"http://127.0.0.1:{_port()}/readyz"
        status = _status(target, timeout_s)
    except (OSError, ValueError, IndexError) as err:
        print(f"clq-serve: {url or 'healthcheck'}: {err}", file=sys.stderr)
        return 1
    print(f"{target}: {status}", file=sys.stdout if status == 200 else sys.stderr)
    return 0 if status == 200 else 1


def _port() -> int:
    port = os.environ.get("CLQ_SERVE_PORT", "")
    config = os.environ.get("CLQ_SERVE_CONFIG", "")
    if not port and config:
        with open(config, "rb") as file:
            port = str(tomllib.load(file).get("port", ""))
    return int(port or DEFAULT_PORT)


def _status(url: str, timeout_s: float) -> int:
    """The status code that an HTTP server gives for the URL."""
    scheme, separator, rest = url.partition("://")
    address, _, path = rest.partition("/")
    host, colon, port = address.rpartition(":")
    if not (scheme == "http" and separator and colon):
        raise ValueError("accepted: http://HOST:PORT/PATH")
    request = f"GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    with socket.create_connection((host.strip("[]"), int(port)), timeout_s) as connection:
        connection.sendall(request.encode())
        received = b""
        while b"\r\n" not in received:
            chunk = connection.recv(4096)
            if not chunk:
                raise OSError("the connection was closed without an answer")
            received += chunk
    return int(received.split()[1])


if __name__ == "__main__":
    sys.exit(probe("".join(sys.argv[1:2])))
