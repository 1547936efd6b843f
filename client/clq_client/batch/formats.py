"""A complete journal as one file of another format, in the order of the keys.

Only images with a result are in it.  The failures go into FILE.failures.jsonl beside it.  Memory is
bounded by what the format's own writer holds: the order is kept in a table on the disk.
"""

import csv
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clq_client.inputs import InputError
from clq_client.results import Label

FORMATS = ("jsonl", "coco", "csv", "parquet")
_SUFFIXES = {".jsonl": "jsonl", ".json": "coco", ".csv": "csv", ".parquet": "parquet"}
_ROWS = 1000  # of a parquet group in memory
_COLUMNS = (
    *("path", "width", "height", "label", "class_id", "score", "x1", "y1", "x2", "y2"),
    *("quality", "cls_score", "model", "version"),
)


def format_of(out: Path, asked: str | None) -> str:
    """The format asked for, else the one of the file's suffix.

    Raises InputError for a format or suffix that is none, and where pyarrow is missing.
    """
    found = asked or _SUFFIXES.get(out.suffix.lower())
    if found not in FORMATS:
        what = f"--format {asked}" if asked else f"--out {out}: no format is known by its suffix"
        raise InputError(f"{what}; accepted: --format {', '.join(FORMATS)}")
    if found == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError as error:
            raise InputError('parquet needs pyarrow: pip install "clq-client[parquet]"') from error
    return found


def convert(journal: Path, out: Path, form: str, labels: Sequence[Label]) -> Path | None:
    """Writes `out`, all of it or nothing; the file of the failures, None where there are none."""
    failures = out.with_name(f"{out.name}.failures.jsonl")
    index = _Index(journal)
    try:
        write = {"coco": _coco, "csv": _csv, "parquet": _parquet}[form]
        beside = _beside(out)
        try:
            write(beside, index, labels)
            _sync(beside)
            beside.replace(out)
        finally:
            beside.unlink(missing_ok=True)
        return failures if _write_failures(failures, index) else None
    finally:
        index.close()


class _Index:
    """The lines of a journal in the order of their keys; their places are in a table on disk."""

    def __init__(self, journal: Path) -> None:
        self._file = journal.open("rb")
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("CREATE TABLE line (key TEXT, place INTEGER, ok INTEGER)")
        self._table.execute("BEGIN")
        place = 0
        for line in self._file:
            entry = json.loads(line)
            row = (json.dumps(entry["path"]), place, entry["ok"])
            self._table.execute("INSERT INTO line VALUES (?, ?, ?)", row)
            place += len(line)

    def entries(self, *, ok: bool) -> Iterator[dict[str, Any]]:
        rows = self._table.execute("SELECT place FROM line WHERE ok = ? ORDER BY key", (ok,))
        for (place,) in rows:
            self._file.seek(place)
            yield json.loads(self._file.readline())

    def close(self) -> None:
        self._table.close()
        self._file.close()


def _coco(path: Path, index: _Index, labels: Sequence[Label]) -> None:
    """A COCO data set whose annotations have a score; ids count from 1 in the order of the keys."""
    with path.open("w", encoding="utf-8") as file:
        categories = [{"id": item.category_id, "name": item.label} for item in labels]
        file.write(f'{{"info": {{}}, "categories": {json.dumps(categories)},\n"images": [')
        for number, entry in enumerate(index.entries(ok=True), start=1):
            size = {"width": entry["image"]["width"], "height": entry["image"]["height"]}
            file.write(",\n" if number > 1 else "\n")
            file.write(json.dumps({"id": number, "file_name": entry["path"]} | size))
        file.write('\n],\n"annotations": [')
        count = 0
        for number, entry in enumerate(index.entries(ok=True), start=1):
            for found in entry["detections"]:
                count += 1
                file.write(",\n" if count > 1 else "\n")
                file.write(json.dumps(_annotation(count, number, found, labels)))
        file.write("\n]}\n")


def _annotation(
    number: int, image_id: int, found: dict[str, Any], labels: Sequence[Label]
) -> dict[str, Any]:
    x1, y1, x2, y2 = found["box"]
    bbox = [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]
    if found["class_id"] >= len(labels):
        raise InputError(f"class {found['class_id']} is none of the service's labels any more")
    return {
        "id": number,
        "image_id": image_id,
        "category_id": labels[found["class_id"]].category_id,
        "bbox": bbox,
        "area": round(bbox[2] * bbox[3], 3),
        "iscrowd": 0,
        "score": found["score"],
    }


def _csv(path: Path, index: _Index, labels: Sequence[Label]) -> None:
    """One row for each detection; an image without any has one row without a label."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(_COLUMNS)
        for entry in index.entries(ok=True):
            image = [entry["path"], entry["image"]["width"], entry["image"]["height"]]
            model = [entry["model"]["name"], entry["model"]["version"]]
            for found in entry["detections"]:
                middle = [found["label"], found["class_id"], found["score"], *found["box"]]
                rows.writerow([*image, *middle, found["quality"], found["cls_score"], *model])
            if not entry["detections"]:
                rows.writerow([*image, *[""] * 9, *model])


def _parquet(path: Path, index: _Index, labels: Sequence[Label]) -> None:
    """One row for each image, its detections as a list of structs."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    sides = [(side, pa.float64()) for side in ("x1", "y1", "x2", "y2")]
    scores = [(name, pa.float64()) for name in ("score", "quality", "cls_score")]
    found_type = pa.struct([("label", pa.string()), ("class_id", pa.int64()), *sides, *scores])
    schema = pa.schema(
        [
            *(("path", pa.string()), ("width", pa.int64()), ("height", pa.int64())),
            *(("sha256", pa.string()), ("model", pa.string()), ("version", pa.int64())),
            ("detections", pa.list_(found_type)),
        ]
    )
    with ParquetWriter(str(path), schema) as writer:
        rows: list[dict[str, Any]] = []
        for entry in index.entries(ok=True):
            rows.append(_row(entry))
            if len(rows) == _ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()
        writer.write_table(pa.Table.from_pylist(rows, schema))


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    detections = [
        found | dict(zip(("x1", "y1", "x2", "y2"), found["box"], strict=True))
        for found in entry["detections"]
    ]
    return {
        "path": entry["path"].encode("utf-8", "backslashreplace").decode(),
        "width": entry["image"]["width"],
        "height": entry["image"]["height"],
        "sha256": entry["image"]["sha256"],
        "model": entry["model"]["name"],
        "version": entry["model"]["version"],
        "detections": detections,
    }


def _write_failures(path: Path, index: _Index) -> bool:
    beside = _beside(path)
    try:
        with beside.open("w", encoding="ascii") as file:
            for entry in index.entries(ok=False):
                file.write(json.dumps(entry) + "\n")
        if beside.stat().st_size == 0:
            path.unlink(missing_ok=True)  # of an earlier run
            return False
        _sync(beside)
        beside.replace(path)
        return True
    finally:
        beside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """The name until it is complete; the lock of the journal is held, so that it is ours alone."""
    return path.with_name(f".{path.name}.tmp")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
