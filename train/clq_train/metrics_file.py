"""metrics.csv of a run."""

import csv
import os
import time
from pathlib import Path


class MetricsFile:
    """metrics.csv of a run: one row a step. On resuming, the rows after `start` are dropped."""

    def __init__(self, path: Path, start: int) -> None:
        # A run that was killed before its first row leaves an empty file, without a header.
        self._empty = not path.exists() or path.stat().st_size == 0
        if not self._empty:
            with path.open(newline="") as old:
                header, *rows = csv.reader(old)
            beside = path.with_suffix(".tmp")
            with beside.open("w", newline="") as new:
                whole = (row for row in rows if len(row) == len(header))  # a kill can cut the last
                csv.writer(new).writerows([header, *(r for r in whole if int(r[0]) <= start)])
            os.replace(beside, path)
        self._file = path.open("a", newline="")
        self._writer, self._began = csv.writer(self._file), time.monotonic()

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._empty:
            self._writer.writerow(["step", "seconds", *values])
            self._empty = False
        seconds = time.monotonic() - self._began
        self._writer.writerow([step, f"{seconds:.1f}", *(f"{v:.6g}" for v in values.values())])
        self._file.flush()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
