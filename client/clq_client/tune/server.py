"""A service process for one candidate: started, waited for, and always ended.

Inside asyncio.run, where Ctrl-C arrives at an await and not between any two lines: there is no
moment at which the process is there and nobody would end it.
"""

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import IO

from clq_client.async_client import AsyncClient
from clq_client.errors import ClqError

READY_TIMEOUT_S = 300.0  # a GPU engine may have to be built
STOP_TIMEOUT_S = 15.0


class NotStarted(Exception):
    """The service ended before it was ready, or was not ready in time.  Has its last line."""


@asynccontextmanager
async def service(command: str, settings: Mapping[str, str]) -> AsyncIterator[str]:
    """The base URL of a service that is ready.

    command   program and arguments, split as a shell would, but run without one
    settings  CLQ_SERVE_* variables, beside those of this process

    The service is a process group of its own, which is ended however the block ends.  Raises
    NotStarted, and OSError if there is no such program.
    """
    port = _free_port()
    environment = os.environ | dict(settings)
    environment |= {
        "CLQ_SERVE_HOST": "127.0.0.1",
        "CLQ_SERVE_PORT": str(port),
        "CLQ_SERVE_ADMIN": "false",
        "CLQ_SERVE_LOG_LEVEL": "warning",
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            shlex.split(command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this program only, which then ends the group
        )
        try:
            url = f"http://127.0.0.1:{port}"
            await _wait_until_ready(url, process, log)
            yield url
        finally:
            _end(process)


async def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    ends_s = time.monotonic() + READY_TIMEOUT_S
    async with AsyncClient(url, retries=0, deadline_s=5.0) as client:
        while time.monotonic() < ends_s:
            if process.poll() is not None:
                raise NotStarted(f"ended with {process.returncode}: {_last_line(log)}")
            with suppress(ClqError):
                if await client.ready():
                    return
            await asyncio.sleep(0.05)
    raise NotStarted(f"not ready within {READY_TIMEOUT_S:g} s: {_last_line(log)}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the group: politely, then not; at once after a second Ctrl-C.

    No await in it, so that nothing can come between.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what the service itself had started
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
