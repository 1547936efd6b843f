"""The service against a bare loop over the same model: `python benchmarks/serve.py`.

The bare loop runs in this process, without HTTP: decode, resize, model, suppression, by the code
and with the sessions of the service, in as many threads as is best (it tries n sessions of one
thread and one of n).  The service is a clq-serve process with its defaults, loaded by wrk (Debian:
apt-get install wrk) with 1, 8 and 32 clients that post the real screenshots of tests/data/screens.
Bare loop and service take turns, several times, because a machine's speed changes; the figures are
medians over the turns and the ratios are of figures of this run.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from service_process import IDLE_S, Service, running

from clq_serve.decoding import decode_upload
from clq_serve.detector import DetectOptions, Detector
from clq_serve.loading import LoadedModel, load_model
from clq_serve.preprocess import ImageLimits
from clq_serve.settings import Settings

SCREENS = Path(__file__).parents[1] / "tests/data/screens"
CLIENTS = (1, 8, 32)
BAR_RATE = 0.95  # at 32 clients, of the bare loop's
BAR_LATENCY = 1.10  # median at 1 client, of the bare loop's
BAR_READY_S = 3.0
PAUSE_S = 0.5  # in which the service drops what wrk left behind at the end of its turn
LUA = """
local bodies, turn = {}, 0
function init(paths)
  for _, path in ipairs(paths) do
    local file = assert(io.open(path, "rb"))
    local headers = {["Content-Type"] = "application/octet-stream"}
    bodies[#bodies + 1] = wrk.format("POST", nil, headers, file:read("*all"))
    file:close()
  end
end
function request()
  turn = turn % #bodies + 1
  return bodies[turn]
end
function done(summary, latency, requests)
  local bad = summary.errors
  local failed = bad.status + bad.connect + bad.read + bad.write + bad.timeout
  print("RESULT", summary.requests, summary.duration, failed, latency:percentile(50),
        latency:percentile(99))
end
"""


@dataclass
class Turns:
    """The figures of one row, one of each kind for each turn."""

    rate: list[float] = field(default_factory=list)  # images a second
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    failed: int = 0

    def add(self, rate: float, p50_ms: float, p99_ms: float, failed: int = 0) -> None:
        self.rate.append(rate)
        self.p50_ms.append(p50_ms)
        self.p99_ms.append(p99_ms)
        self.failed += failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="*", default=sorted(SCREENS.glob("*.png")))
    parser.add_argument("--seconds", type=float, default=10, help="of one turn of one row")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed; Debian: apt-get install wrk")
    settings = Settings()
    model = load_model(settings)
    arrangements = {f"{len(model.lanes)} x 1 lane": model.lanes}
    if model.wide is not None:
        arrangements["1 x all cores"] = (model.wide,)
    files = [path.read_bytes() for path in arguments.images]
    rows = {f"bare loop, {name}": Turns() for name in arrangements}
    rows |= {"bare loop, one image": Turns()}
    rows |= {f"service, {clients} clients": Turns() for clients in CLIENTS}
    with running() as service:
        print(f"{model.name}/{model.version}, {model.placement}; {len(files)} images")
        time.sleep(IDLE_S)
        idle_mib = service.memory_mib()
        for warm_up in (True, *[False] * arguments.turns):
            seconds = 2.0 if warm_up else arguments.seconds
            for name, detectors in arrangements.items():
                found = bare(detectors, model, files, seconds)
                _ = warm_up or rows[f"bare loop, {name}"].add(*found)
            found = bare((model.wide or model.lanes[0],), model, files, seconds)
            _ = warm_up or rows["bare loop, one image"].add(*found)
            for clients in CLIENTS:
                time.sleep(PAUSE_S)
                measured = wrk(service, arguments.images, clients, seconds)
                _ = warm_up or rows[f"service, {clients} clients"].add(*measured)
        busy_mib = service.memory_mib()
    sys.exit(not report(rows, service, idle_mib, busy_mib))


def bare(
    detectors: tuple[Detector, ...], model: LoadedModel, files: list[bytes], seconds: float
) -> tuple[float, float, float]:
    """Images a second, p50 and p99 in ms of one image, of a thread for each detector."""
    manifest = model.bundle.manifest
    options = DetectOptions.from_thresholds(manifest.thresholds)
    took_s: list[float] = []
    start = time.perf_counter()

    def loop(detector: Detector, turn: int) -> None:
        while (began := time.perf_counter()) - start < seconds:
            upload = decode_upload(files[turn % len(files)], ImageLimits(), manifest.input.rule)
            detector.detect_batch([upload.prepared], [options])
            took_s.append(time.perf_counter() - began)
            turn += 1

    threads = [threading.Thread(target=loop, args=(d, i)) for i, d in enumerate(detectors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = len(took_s) / (time.perf_counter() - start)
    ordered = sorted(took_s)
    return rate, 1e3 * statistics.median(ordered), 1e3 * ordered[int(0.99 * (len(ordered) - 1))]


def wrk(
    service: Service, images: list[Path], clients: int, seconds: float
) -> tuple[float, float, float, int]:
    """Good answers a second, p50 and p99 in ms, and how many requests failed."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "screens.lua")
        script.write_text(LUA)
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "60s"]
        command += ["-s", str(script), f"{service.url}/v1/detect", "--", *map(str, images)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"RESULT\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)", done.stdout)
    if found is None:
        sys.exit(f"wrk printed no result:\n{done.stdout}{done.stderr}")
    requests, duration_us, failed, p50_us, p99_us = (float(value) for value in found.groups())
    good = (requests - failed) / (duration_us / 1e6)
    return good, p50_us / 1e3, p99_us / 1e3, int(failed)


def report(rows: dict[str, Turns], service: Service, idle_mib: float, busy_mib: float) -> bool:
    """Prints the table; whether every bar was met."""
    loops = {name: row for name, row in rows.items() if "one image" not in name and "bare" in name}
    best_name, best = max(loops.items(), key=lambda pair: statistics.median(pair[1].rate))
    print(
        f"{'':>30} {'images/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'failed':>7} {'of bare loop':>13}"
    )
    ratios = {}
    for name, row in rows.items():
        base, kind = (best.rate, row.rate)
        if name in ("service, 1 clients", "bare loop, one image"):
            base, kind = (rows["bare loop, one image"].p50_ms, row.p50_ms)
        # turn by turn: both were measured within seconds of each other
        ratios[name] = statistics.median(a / b for a, b in zip(kind, base, strict=True))
        rate, p50, p99 = (statistics.median(v) for v in (row.rate, row.p50_ms, row.p99_ms))
        of = "p50" if base is not best.rate else "rate"
        figures = f"{rate:9.2f} {p50:8.1f} {p99:8.1f} {row.failed:7d}"
        print(f"{name:>30} {figures} {ratios[name]:8.3f} {of}")
    bars = {
        f"rate at 32 clients at least {BAR_RATE} of: {best_name}": (
            ratios["service, 32 clients"] >= BAR_RATE
        ),
        f"median at 1 client at most {BAR_LATENCY} of: bare loop, one image": (
            ratios["service, 1 clients"] <= BAR_LATENCY
        ),
        f"start to ready {service.ready_s:.2f} s, at most {BAR_READY_S:g} s": (
            service.ready_s <= BAR_READY_S
        ),
        "no request failed": not any(row.failed for row in rows.values()),
    }
    print(f"resident memory {idle_mib:.0f} MiB idle, {busy_mib:.0f} MiB after the load")
    for text, met in bars.items():
        print(f"{'yes' if met else 'NO':>3}  {text}")
    return all(bars.values())


if __name__ == "__main__":
    main()
