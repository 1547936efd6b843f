"""The command clq-serve, run as a process of its own."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

PATIENCE_S = 60  # how long anything may take on a machine that is busy with something else
COMMAND = [sys.executable, "-c", "from clq_serve.cli import main; main()"]


@dataclass(frozen=True)
class Running:
    """A service process that is ready; `lines` is what it has printed until then."""

    process: subprocess.Popen[str]
    url: str
    admin: str
    lines: list[str]
    log: IO[str]

    def logged(self) -> str:
        """What it has written to stderr."""
        self.log.seek(0)
        return self.log.read()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.url.rpartition(":")[2])


def environment(**more: str) -> dict[str, str]:
    """The environment without any setting of the service but these."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CLQ_")}
    return clean | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"} | more


def command(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A call of clq-serve that ends by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment(**more),
    )


@contextmanager
def running(*arguments: str, **more: str) -> Iterator[Running]:
    """A service on free ports; it is killed in the end if it still runs."""
    # Not a pipe for the log: nobody reads it meanwhile, and a full one would stop the service.
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [*COMMAND, "run", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(**more),
        ) as process,
    ):
        assert process.stdout is not None
        try:
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if line.startswith("ready: "):
                    break
            urls = re.findall(r"(admin|ready): .*?(http://127\.0\.0\.1:\d+)", "\n".join(lines))
            found = dict(urls)
            service = Running(process, found.get("ready", ""), found.get("admin", ""), lines, log)
            assert "ready" in found, (lines, service.logged())
            yield service
        finally:
            process.kill()
            process.wait(PATIENCE_S)
