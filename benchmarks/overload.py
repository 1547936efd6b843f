"""What more load than it can do does to the service: `python benchmarks/overload.py`.

The generator is that of `clq-client bench`, in this process; the service runs in one of its own.
First a closed loop finds the peak; then requests arrive at random (Poisson) at 0.5, 1, 2, 3 and 5
times that rate, whether or not earlier ones were answered, each with a deadline.  Goodput counts
answers of status 200 that came within the deadline; ratio is goodput over that of the peak, which
is measured again beside each rate, because the machine's own speed changes as well.  "lag" is how
late this program was itself (p99): a row where it is large says more about the generator.
"""

import argparse
import asyncio
import io
import sys
from pathlib import Path

from PIL import Image
from service_process import running

from clq_client.bench.command import bench_load
from clq_client.bench.measure import Arrivals, Measured, Plan, measure_clients, measure_rate
from clq_client.bench.slo import Goal
from clq_client.settings import ClientSettings

SCREENS = Path(__file__).parents[1] / "tests/data/screens"
PATIENCE_S = 30  # of the clients of the closed loop: none is refused for its deadline
BAR = 0.95  # goodput at 3 and 5 times the peak, over the peak's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="measured, for each row")
    parser.add_argument("--warmup-s", type=float, default=5)
    parser.add_argument("--clients", type=int, default=8, help="of the closed loop")
    parser.add_argument("--times", type=float, nargs="+", default=[0.5, 1, 2, 3, 5])
    parser.add_argument("--timeout-s", type=float, default=5, help="deadline of each request")
    arguments = parser.parse_args()
    with running() as service:
        print(f"{service.url}, deadline {arguments.timeout_s:g} s, {arguments.seconds:g} s a row")
        print(
            f"{'load':>7} {'offered/s':>10} {'goodput/s':>10} {'ratio':>6} {'refused':>8}", end=""
        )
        print(f" {'late':>6} {'other':>6} {'p50 ms':>8} {'p99 ms':>8} {'lag ms':>7}")
        missed = asyncio.run(measure(service.url, arguments))
    print(f"at least {BAR:g} of the peak at 3 times and more: {'NO' if missed else 'yes'}")
    sys.exit(missed)


async def measure(url: str, arguments: argparse.Namespace) -> bool:
    """Prints the rows; returns whether one missed the bar."""
    limit_ms = 1e3 * arguments.timeout_s
    plan = Plan(arguments.warmup_s, arguments.seconds, Arrivals.POISSON, 0, Goal(99.0, limit_ms))
    settings = ClientSettings.checked(
        url, None, None, None, None, arguments.timeout_s, 0, None, None
    )
    closed = bench_load(settings, screens(), arguments.clients, PATIENCE_S)
    opened = bench_load(settings, screens(), 1024, arguments.timeout_s)
    missed = False
    for times in arguments.times:
        peak = await measure_clients(closed, plan)
        show("peak", peak, peak.figures.goodput)
        row = await measure_rate(opened, plan, times * peak.figures.goodput)
        show(f"{times:g} x", row, peak.figures.goodput)
        missed |= times >= 3 and row.figures.goodput < BAR * peak.figures.goodput
    return missed


def show(name: str, row: Measured, peak: float) -> None:
    figures = row.figures
    counts = dict(figures.errors)
    refused = counts.pop("503", 0) + counts.pop("429", 0)
    late = counts.pop("504", 0) + counts.pop("408", 0) + counts.pop("timeout", 0)
    p50, p99 = figures.latency_ms.get("p50", 0.0), figures.latency_ms.get("p99", 0.0)
    ratio = figures.goodput / peak if peak else float("nan")
    line = f"{name:>7} {figures.offered:>10.2f} {figures.goodput:>10.2f} {ratio:>6.3f} "
    line += f"{refused:>8} {late:>6} {sum(counts.values()):>6} {p50:>8.0f} {p99:>8.0f} "
    print(line + f"{figures.sent_late_p99_ms:>7.1f}", flush=True)


def screens() -> list[bytes]:
    """Real screenshots as JPEG: few bytes to send, little to decode."""
    files = []
    for path in sorted(SCREENS.glob("*.png")):
        file = io.BytesIO()
        Image.open(path).convert("RGB").save(file, "JPEG", quality=80)
        files.append(file.getvalue())
    return files


if __name__ == "__main__":
    main()
