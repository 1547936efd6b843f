"""What the samples of one run come to."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf

from clq_client.bench.loops import Sample
from clq_client.bench.percentiles import SHOWN, percentile, percentile_name

_STAGE = re.compile(rb"\s*([A-Za-z0-9_-]+)\s*(?:;\s*dur=([0-9.]+))?")


@dataclass(frozen=True, slots=True)
class Window:
    """The measured part of a run, seconds after its start; before it was the warm-up."""

    begin_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True)
class Figures:
    """One run: `requests` arrived in its window, `good` of them were answered with status 200.

    offered           requests per second that arrived
    throughput        answers per second that ended in the window, whatever their status
    goodput           those of status 200 within `within_ms` (None = however late)
    latency_ms        percentile name -> milliseconds from arrival to the last byte, status 200
                      only; with "mean" and "max"; empty where no answer was good
    server_ms         stage of Server-Timing -> {"mean", "p50", "p99"} milliseconds, status 200;
                      "outside" is latency less the stage "total": network, waiting to be sent
    errors            "503", "timeout", "connection cut", ... -> how many
    resent            how many were sent twice, because the server had closed a kept connection
    sent_late_p99_ms  how long requests waited in this program: for a connection, or for its loop
    """

    requests: int
    good: int
    window_s: float
    offered: float
    throughput: float
    goodput: float
    within_ms: float | None
    latency_ms: dict[str, float]
    server_ms: dict[str, dict[str, float]]
    errors: dict[str, int]
    resent: int
    sent_late_p99_ms: float

    def to_dict(self) -> dict[str, object]:
        """The figures as JSON takes them."""
        return asdict(self)


def figures_of(
    samples: Sequence[Sample], window: Window, within_ms: float | None = None
) -> Figures:
    """The figures of the requests that arrived in the window.

    Throughput and goodput count what ended in it instead: also a request of the warm-up is work
    that the service did then.
    """
    arrived = [s for s in samples if window.begin_s <= s.due_s < window.end_s]
    ended = [s for s in samples if window.begin_s <= s.ended_s < window.end_s and s.status]
    good = [s for s in arrived if s.status == 200]
    latencies = sorted(1e3 * (s.ended_s - s.due_s) for s in good)
    late = sorted(1e3 * (s.sent_s - s.due_s) for s in arrived)
    limit_ms = inf if within_ms is None else within_ms
    in_time = sum(s.status == 200 and 1e3 * (s.ended_s - s.due_s) <= limit_ms for s in ended)
    errors = Counter(s.failure or str(s.status) for s in arrived if s.status != 200)
    return Figures(
        requests=len(arrived),
        good=len(good),
        window_s=window.length_s,
        offered=len(arrived) / window.length_s,
        throughput=len(ended) / window.length_s,
        goodput=in_time / window.length_s,
        within_ms=within_ms,
        latency_ms=_spread(latencies),
        server_ms=_server_stages(good),
        errors=dict(sorted(errors.items())),
        resent=sum(s.resent for s in arrived),
        sent_late_p99_ms=percentile(late, 99) if late else 0.0,
    )


def percentile_of_all_ms(samples: Sequence[Sample], window: Window, percent: float) -> float:
    """The percentile of latency where every request without a good answer took for ever.

    returns  milliseconds; inf where too many failed or none arrived: a service that refuses half
             of its requests does not become fast by it
    """
    latencies = sorted(
        1e3 * (s.ended_s - s.due_s) if s.status == 200 else inf
        for s in samples
        if window.begin_s <= s.due_s < window.end_s
    )
    return percentile(latencies, percent) if latencies else inf


def stages_ms(server_timing: bytes) -> Mapping[str, float]:
    """The durations of a Server-Timing header; {} where there are none.

    "decode;dur=3.5, queue;dur=0.1" -> {"decode": 3.5, "queue": 0.1}.  Source: W3C Server Timing.
    """
    found: dict[str, float] = {}
    for metric in server_timing.split(b","):
        match = _STAGE.match(metric)
        if match and match[2]:
            found[match[1].decode("ascii")] = float(match[2])
    return found


def _server_stages(good: Sequence[Sample]) -> dict[str, dict[str, float]]:
    values: dict[str, list[float]] = defaultdict(list)
    for sample in good:
        stages = stages_ms(sample.server_timing)
        for stage, duration_ms in stages.items():
            values[stage].append(duration_ms)
        if "total" in stages:
            values["outside"].append(1e3 * (sample.ended_s - sample.due_s) - stages["total"])
    return {
        stage: {
            "mean": sum(durations) / len(durations),
            "p50": percentile(sorted(durations), 50),
            "p99": percentile(sorted(durations), 99),
        }
        for stage, durations in values.items()
    }


def _spread(ordered_ms: Sequence[float]) -> dict[str, float]:
    if not ordered_ms:
        return {}
    shown = {percentile_name(q): percentile(ordered_ms, q) for q in SHOWN}
    return shown | {"mean": sum(ordered_ms) / len(ordered_ms), "max": ordered_ms[-1]}
