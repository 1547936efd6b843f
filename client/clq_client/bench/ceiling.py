"""How many requests per second this program can send at all, on this machine, with these images."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clq_client.bench.figures import Window, figures_of
from clq_client.bench.loops import Load, closed_loop
from clq_client.bench.target import Target

DURATION_S = 0.8


@contextmanager
def trivial_server() -> Iterator[str]:
    """The URL of a server of its own process that answers at once; ends it."""
    command = [sys.executable, "-m", "clq_client.bench.trivial_server"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise OSError("the server that the generator is measured against did not start")
            yield f"http://127.0.0.1:{int(line)}"
        finally:
            process.kill()


async def ceiling(requests: Sequence[bytes], connections: int) -> float:
    """Answers per second of a closed loop against a server that does nothing.

    The requests name another host; that server does not look at it.
    """
    with trivial_server() as url:
        load = Load(Target.of(url), requests, connections, timeout_s=30.0)
        samples = await closed_loop(load, 1.25 * DURATION_S)
    return figures_of(samples, Window(0.25 * DURATION_S, 1.25 * DURATION_S)).throughput
