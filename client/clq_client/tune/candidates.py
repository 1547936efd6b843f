"""Which settings are tried, and how the best are written down for the service."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

PREFIX = "CLQ_SERVE_"
MOST_CANDIDATES = 100
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings of the service, (name, value) as the service takes them; () = as it is now."""

    settings: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.settings) or "as it is now"

    def environment(self) -> dict[str, str]:
        """The settings as variables: max_batch is CLQ_SERVE_MAX_BATCH."""
        return {PREFIX + name.upper(): value for name, value in self.settings}

    def toml(self) -> str:
        """The settings as lines of the service's TOML file."""
        return "".join(f"{name} = {_toml_value(value)}\n" for name, value in self.settings)


def default_candidates(device: str, cores: int) -> list[Candidate]:
    """What is tried if nothing is said, the settings as they are first.

    device  the service's setting of that name: "cpu", or GPUs
    cores   CPU cores that the service may use, >= 1

    On a CPU: engines of one model (sessions), from one with all cores to one a core, and batches;
    with many cores also one core less, which is then free to decode.  On a GPU: batches up to 32,
    which an engine may wait for, in one or two sessions.
    """
    on_cpu = device == "cpu"
    sessions = sorted({1, max(1, cores // 2), cores}) if on_cpu else [1, 2]
    batches = (
        [(1, 0), (4, 0), (4, 5)] if on_cpu else [(b, d) for b in (4, 8, 16, 32) for d in (0, 2)]
    )
    threads = [cores, cores - 1] if on_cpu and cores >= 4 else [cores]
    found = [Candidate(())]
    for thread_count, session_count, (batch, delay_ms) in product(threads, sessions, batches):
        if on_cpu and session_count > thread_count:
            continue
        settings = {
            "threads": thread_count,
            "sessions_per_device": session_count,
            "max_batch": batch,
            "batch_delay_ms": delay_ms,
        }
        found.append(Candidate(tuple((name, str(value)) for name, value in settings.items())))
    return found


def given_candidates(choices: Sequence[str]) -> list[Candidate]:
    """Every combination of texts like "max_batch=1,4", the settings as they are first.

    Raises ValueError.
    """
    names: dict[str, list[str]] = {}
    for choice in choices:
        name, _, values = choice.partition("=")
        if not _NAME.fullmatch(name) or not values or name in ("host", "port", "admin"):
            raise ValueError(
                f"--try: {choice!r} is not accepted; accepted: name=value,value of settings of the "
                "service except host, port and admin"
            )
        names.setdefault(name, []).extend(values.split(","))
    combinations = [
        Candidate(tuple(zip(names, values, strict=True))) for values in product(*names.values())
    ]
    if len(combinations) > MOST_CANDIDATES:
        raise ValueError(
            f"--try: {len(combinations)} combinations; accepted: at most {MOST_CANDIDATES}"
        )
    return [Candidate(()), *combinations]


def _toml_value(value: str) -> str:
    if re.fullmatch(r"true|false|\d+|\d+\.\d+", value):
        return value
    return json.dumps(value)  # a JSON string is a TOML basic string
