"""A clq-serve process for the benchmarks beside this file: its address, start and memory."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READY_TIMEOUT_S = 120
IDLE_S = 2.0  # after the start, before its memory is read


@dataclass(frozen=True)
class Service:
    """A running service; ready_s is from its start to its line "ready"."""

    url: str
    admin_url: str
    ready_s: float
    pid: int

    def memory_mib(self) -> float:
        """What is resident now, MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found, status
        return int(found[1]) / 1024

    def cpu_s(self) -> float:
        """Processor time used so far, seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(**settings: object) -> Iterator[Service]:
    """A service with these settings on free ports of 127.0.0.1; ends it."""
    environment = os.environ | {
        f"CLQ_SERVE_{name.upper()}": str(value) for name, value in settings.items()
    }
    command = [sys.executable, "-c", "from clq_serve.cli import main; main()", "run"]
    command += ["--port", "0", "--log-level", "warning"]
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    late = threading.Timer(READY_TIMEOUT_S, process.kill)
    late.start()
    try:
        url = admin_url = ""
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"http://[^/\s]+", line)
            if line.startswith("admin:") and found:
                admin_url = found[0]
            if line.startswith("ready:") and found:
                url = found[0]
                break
        late.cancel()
        if not url:
            sys.exit("clq-serve did not become ready; its own lines say why")
        yield Service(url, admin_url, time.perf_counter() - start, process.pid)
    finally:
        late.cancel()
        process.terminate()
        process.wait(60)
