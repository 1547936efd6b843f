"""How long a start takes, and what an idle service keeps: `python benchmarks/start.py [BUNDLE]`.

Starts `clq-serve run` several times and prints the median of the seconds from the start of the
process until each of its first lines, the share of the whole, the processor time, and the resident
memory when it is ready. Ready means: every engine has reproduced the golden examples.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-u", "-c", "from clq_serve.cli import main; main()", "run", "--port=0"]
LINES = {"settings": "program imported", "model": "model loaded and proved", "ready": "ready"}


def start(arguments: list[str]) -> dict[str, float]:
    """Seconds until each line of LINES, `processor` seconds and `resident` MB when ready."""
    found: dict[str, float] = {}
    began = time.perf_counter()
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            word = line.partition(":")[0]
            if word in LINES:
                found[word] = time.perf_counter() - began
            if word == "ready":
                break
        folder = Path("/proc") / str(process.pid)
        ticks = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
        found["processor"] = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        resident = re.search(r"VmRSS:\s+(\d+) kB", (folder / "status").read_text())
        assert resident
        found["resident"] = int(resident[1]) / 1024
        process.kill()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    given = [] if arguments.bundle is None else ["--bundle", str(arguments.bundle)]
    runs = [start(given) for _ in range(arguments.repeats + 1)][1:]  # the first fills the caches
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(f"median of {arguments.repeats} starts")
    for word, what in LINES.items():
        print(f"{what:26} {middle[word]:6.2f} s {middle[word] / middle['ready']:5.0%}")
    print(f"{'processor time':26} {middle['processor']:6.2f} s")
    print(f"{'resident memory when idle':26} {middle['resident']:6.0f} MB")


if __name__ == "__main__":
    main()
