"""metrics.csv and eval.csv of a run: a row a step, written as it goes."""

import csv
import errno
import io
import os
import time
from pathlib import Path


class MetricsFile:
    """One row a step, with the seconds since the run began.

    On resuming, the rows after `start` are dropped and the seconds go on.
    """

    def __init__(self, path: Path, start: int) -> None:
        rows = [row for row in read_metrics(path) if int(row["step"]) <= start]
        self._header = list(rows[0]) if rows else []
        beside = path.with_suffix(".tmp")
        with beside.open("w", newline="") as file:
            if rows:
                writer = csv.DictWriter(file, self._header)
                writer.writeheader()
                writer.writerows(rows)
        os.replace(beside, path)
        # Unbuffered: a full disk fails the row that does not fit, not the closing of the file.
        self._file = path.open("ab", buffering=0)
        before = float(rows[-1]["seconds"]) if rows else 0.0
        self._began = time.monotonic() - before

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a row. Raises OSError if it does not fit on the disk."""
        seconds = f"{time.monotonic() - self._began:.1f}"
        row = {"step": str(step), "seconds": seconds} | {k: f"{v:.6g}" for k, v in values.items()}
        text = io.StringIO(newline="")
        # A file from before a column existed keeps its own columns.
        writer = csv.DictWriter(text, self._header or list(row), extrasaction="ignore")
        if not self._header:
            self._header = list(row)
            writer.writeheader()
        writer.writerow(row)
        data = text.getvalue().encode()
        if self._file.write(data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The whole rows of the file, by column; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    # A kill can cut the last row.
    return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
