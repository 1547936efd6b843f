"""How ONNX Runtime uses the cores best: `python benchmarks/sessions.py [BUNDLE]`.

With n cores: one session with n threads (spinning on and off), n sessions with one thread each, or
one session with one thread that n threads call. All take the same prepared images, by turns, in one
process. The last column is the rate divided by that of the one session with n threads that does not
spin. A second table gives the time of an image that is alone. The defaults of the service (lanes,
`wide_session`, `spinning`, `max_batch` on the CPU) were chosen from what it prints.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clq_serve.bundle import Bundle, builtin_bundle_path, load_bundle
from clq_serve.engine import OnnxEngine
from clq_serve.settings import allowed_cores

SIZES = ((1280, 832), (832, 1280), (640, 640))  # of padded screenshots, width x height
PAUSE_S = 0.2  # a session that spins goes on for a while after its run, in another's turn


@dataclass(frozen=True)
class Arrangement:
    """Engines that are called at the same time, one caller for each entry."""

    name: str
    callers: Sequence[OnnxEngine]


def arrangements(bundle: Bundle, cores: int) -> list[Arrangement]:
    """The base of the ratios comes first."""
    wide = OnnxEngine(bundle, cores)
    spinning = OnnxEngine(bundle, cores, spinning=True)
    shared = OnnxEngine(bundle, 1)
    return [
        Arrangement(f"1 session x {cores} threads", [wide]),
        Arrangement(f"1 session x {cores}, spinning", [spinning]),
        Arrangement(f"{cores} sessions x 1 thread", [OnnxEngine(bundle, 1) for _ in range(cores)]),
        Arrangement(f"1 session x 1, {cores} callers", [shared] * cores),
    ]


def images_per_s(arrangement: Arrangement, batch: np.ndarray, seconds: float) -> float:
    """Images a second of all callers together."""
    done: list[int] = []
    start = time.perf_counter()

    def call(engine: OnnxEngine) -> None:
        while time.perf_counter() - start < seconds:
            engine.run(batch)
            done.append(len(batch))

    threads = [threading.Thread(target=call, args=[engine]) for engine in arrangement.callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--cores", type=int, default=allowed_cores())
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle or builtin_bundle_path())
    candidates = arrangements(bundle, arguments.cores)
    print(f"{bundle.manifest.name}/{bundle.manifest.version}, {arguments.cores} cores,")
    print(f"median of {arguments.rounds} turns of {arguments.seconds:g} s each\n")
    print(f"{'input':>11} {'batch':>5}  {'arrangement':28} {'img/s':>7} {'ratio':>6}")
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        for count in (1, 2, 4):
            batch = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
            rates: dict[str, list[float]] = {one.name: [] for one in candidates}
            for one in candidates:  # the first run of a shape allocates
                images_per_s(one, batch, 0)
            for _ in range(arguments.rounds):
                for one in candidates:
                    time.sleep(PAUSE_S)
                    rates[one.name].append(images_per_s(one, batch, arguments.seconds))
            base = statistics.median(rates[candidates[0].name])
            for name, values in rates.items():
                rate = statistics.median(values)
                size = f"{width} x {height}"
                print(
                    f"{size:>11} {count:5}  {name:28} {rate:7.2f} {rate / base:5.2f}x", flush=True
                )
    alone(candidates, rng, arguments.rounds)


def alone(candidates: Sequence[Arrangement], rng: np.random.Generator, rounds: int) -> None:
    """The table of one image at a time."""
    print(f"\n{'input':>11}  {'one image alone':28} {'ms':>7} {'ratio':>6}")
    for width, height in SIZES:
        batch = rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        times: dict[str, list[float]] = {one.name: [] for one in candidates[:3]}
        for _ in range(3 * rounds):
            for one in candidates[:3]:
                time.sleep(PAUSE_S)
                start = time.perf_counter()
                one.callers[0].run(batch)
                times[one.name].append(1e3 * (time.perf_counter() - start))
        base = statistics.median(times[candidates[0].name])
        for name, values in times.items():
            took_ms = statistics.median(values)
            size = f"{width} x {height}"
            print(f"{size:>11}  {name:28} {took_ms:7.1f} {took_ms / base:5.2f}x", flush=True)


if __name__ == "__main__":
    main()
