"""Whether clq-client bench counts as wrk does: `python benchmarks/bench_vs_wrk.py [IMAGE...]`.

Both load one clq-serve process by turns, in a closed loop, with the same bodies and the same number
of connections; neither gets a warm-up of its own. Many short turns, so that whatever else the
machine does meets both. Needs wrk (Debian: apt-get install wrk) and the
installed service and client.
"""

import argparse
import asyncio
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from clq_client.bench.command import bench_load
from clq_client.bench.measure import Arrivals, Plan, measure_clients
from clq_client.settings import ClientSettings

SCREENS = Path(__file__).parents[1] / "tests/data/screens"
READY_TIMEOUT_S = 120
AGREE_WITHIN = 0.05
# Sends the files named after "--" by turns.
LUA = """
local requests, at = {}, 0
function init(files)
  for _, path in ipairs(files) do
    local file = assert(io.open(path, "rb"))
    local headers = {["Content-Type"] = "application/octet-stream"}
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*all"))
    file:close()
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="*", default=sorted(SCREENS.glob("*.png")))
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=5, help="of one turn")
    parser.add_argument("--repeats", type=int, default=10, help="turns of each")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed; Debian: apt-get install wrk")
    with service() as url:
        wrk(url, arguments.images, 1, 2)  # warms the service up
        print(f"{len(arguments.images)} images, {arguments.repeats} turns of")
        print(f"{arguments.seconds:g} s each; mean requests/s with status 200")
        print(f"{'connections':>11} {'wrk':>9} {'clq-client':>11} {'ratio':>7}")
        agree = True
        for connections in arguments.connections:
            by_wrk, by_ours = [], []
            for _ in range(arguments.repeats):
                by_wrk.append(wrk(url, arguments.images, connections, arguments.seconds))
                by_ours.append(ours(url, arguments.images, connections, arguments.seconds))
            theirs, mine = statistics.mean(by_wrk), statistics.mean(by_ours)
            agree = agree and abs(mine / theirs - 1) <= AGREE_WITHIN
            print(f"{connections:>11} {theirs:9.2f} {mine:11.2f} {mine / theirs:7.3f}")
    print(f"all within {100 * AGREE_WITHIN:g} %: {'yes' if agree else 'NO'}")
    sys.exit(not agree)


def wrk(url: str, images: list[Path], connections: int, seconds: float) -> float:
    """Good answers per second by wrk, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "bodies.lua")
        script.write_text(LUA)
        load = [f"-c{connections}", "-t1", f"-d{seconds:g}s", "--timeout", "60s", "-s", script]
        command = ["wrk", *load, f"{url}/v1/detect", "--", *images]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    complete = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", done.stdout)
    if complete is None:
        sys.exit(f"wrk printed no count:\n{done.stdout}{done.stderr}")
    took_s = float(complete[2]) * {"ms": 1e-3, "s": 1.0, "m": 60.0}[complete[3]]
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    return (int(complete[1]) - (int(bad[1]) if bad else 0)) / took_s


def ours(url: str, images: list[Path], connections: int, seconds: float) -> float:
    """Good answers per second by the load tester of the client."""
    settings = ClientSettings.checked(url, None, None, None, None, 60.0, 0, None, None)
    load = bench_load(settings, [image.read_bytes() for image in images], connections, 60.0)
    plan = Plan(0.0, seconds, Arrivals.POISSON, 0, None)
    return asyncio.run(measure_clients(load, plan)).figures.goodput


@contextmanager
def service() -> Iterator[str]:
    """The URL of a clq-serve process with the built-in model; ends it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from clq_serve.cli import main; main()", "run"]
    command += ["--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while True:
            if process.poll() is not None or time.monotonic() > deadline_s:
                sys.exit("clq-serve did not become ready")
            try:
                if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    main()
