"""How many CPU cores this process may use."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def allowed_cores(cgroups: Path = CGROUPS) -> int:
    """The cores of the CPU affinity, or the quota of the container where that is less; >= 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _quota_cores(cgroups)
    return cores if quota is None else min(cores, max(1, int(quota)))


def _quota_cores(cgroups: Path) -> float | None:
    """CPU time per time that the control group grants; None = no limit, or no control group."""
    v2 = cgroups / "cpu.max"  # "<microseconds, or max> <period>"
    if v2.is_file():
        granted, period = v2.read_text().split()
        return None if granted == "max" else int(granted) / int(period)
    v1 = cgroups / "cpu"  # the first version has a file for each number; -1 = no limit
    if (v1 / "cpu.cfs_quota_us").is_file():
        microseconds = int((v1 / "cpu.cfs_quota_us").read_text())
        period_us = int((v1 / "cpu.cfs_period_us").read_text())
        return microseconds / period_us if microseconds > 0 else None
    return None
