"""The journal: one JSON line for each image, in whole lines, on the disk before it counts.

A run that is killed leaves at most one torn line at the end; the next run cuts it off.
"""

import fcntl
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from clq_client.inputs import InputError

CACHE_KIB = 8 * 1024
_BEGIN = b'{"path": "'
_HEAD = re.compile(rb'\{"path": ("(?:[^"\\]|\\.)*"), "ok": (true|false), ')


class Seen:
    """The keys that are in the journal or on their way: digests in a table on the disk.

    Memory is the table's cache, at most CACHE_KIB, for any number of keys.  Two keys share a
    digest of 128 bits with a chance of 1e-27 among a million.
    """

    def __init__(self) -> None:
        # "" is a private file of the disk that goes with the connection, whatever ends it.
        self._table = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._table.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")
        self._table.execute("BEGIN")  # one for all: nothing here must outlive the process

    def add(self, key: str) -> bool:
        """Whether the key is new; it is in from now on."""
        digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return self._table.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1

    def close(self) -> None:
        self._table.close()


@dataclass(slots=True)
class Found:
    """What an earlier run left in a journal."""

    done: int = 0
    failed: int = 0
    cut_bytes: int = 0
    a_result: dict[str, object] | None = None
    seen: Seen = field(default_factory=Seen)


class Journal:
    """The file, locked for this run; `found` says what was in it.

    retry_failed  images that failed in earlier runs are taken out, so that they are sent again

    Raises InputError where another run has it, and for a file that is no journal.
    """

    def __init__(self, path: Path, *, retry_failed: bool = False) -> None:
        self._path = path
        self._file = _locked(path)
        self.found = Found()
        try:
            self.found.cut_bytes = _cut_torn_line(self._file, path)
            if retry_failed:
                self._drop_failed()
            self._index()
        except BaseException:
            self._close()
            raise
        self._end = self._file.seek(0, os.SEEK_END)

    def append(self, lines: Sequence[str]) -> None:
        """Writes whole lines; they are on the disk when this returns, or none of them is."""
        data = "".join(f"{line}\n" for line in lines).encode("ascii")
        try:
            _write_all(self._file, data)
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)  # a full disk: no half line stays
            raise
        self._end += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        self.found.seen.close()
        self._file.close()

    def _index(self) -> None:
        for number, (key, ok, line) in enumerate(_lines(self._file, self._path), start=1):
            if not self.found.seen.add(key):
                raise InputError(f"{self._path}: line {number}: {key} was there before")
            self.found.done += 1
            self.found.failed += not ok
            if ok and self.found.a_result is None:
                self.found.a_result = json.loads(line)

    def _drop_failed(self) -> None:
        """Replaces the file by one without the failures; the lock goes over to it."""
        beside = self._path.with_name(f".{self._path.name}.tmp")  # ours alone, by the lock
        kept = beside.open("w+b", buffering=0)
        try:
            fcntl.flock(kept, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for _, ok, line in _lines(self._file, self._path):
                if ok:
                    _write_all(kept, line)
            os.fsync(kept.fileno())
            beside.replace(self._path)
        except BaseException:
            kept.close()
            beside.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file = kept


def entries(path: Path) -> Iterator[tuple[str, bool, dict[str, object]]]:
    """(key, ok, line) of each image in a journal that is complete."""
    with path.open("rb") as file:
        for key, ok, line in _lines(file, path):
            yield key, ok, json.loads(line)


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[str, bool, bytes]]:
    file.seek(0)
    with open(os.dup(file.fileno()), "rb") as reader:
        reader.seek(0)
        for number, line in enumerate(reader, start=1):
            head = _HEAD.match(line)
            if head is None or not line.endswith(b"}\n"):
                raise InputError(
                    f"{path}: line {number} is not of clq-client batch; take another file for --out"
                )
            yield json.loads(head[1]), head[2] == b"true", line


def _locked(path: Path) -> BinaryIO:
    """The file, made if it is not there, that no other run has."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", 0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except BlockingIOError:
            file.close()
            raise InputError(f"{path}: another run is writing it") from None
        file.close()  # the other run has just replaced it


def _write_all(file: BinaryIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _cut_torn_line(file: BinaryIO, path: Path) -> int:
    """Cuts what is behind the last line's end; how many bytes that was.

    Raises InputError where that is no line of a journal: the file may be somebody's only copy.
    """
    size = end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - (1 << 16))
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        file.seek(end)
        torn = file.read(len(_BEGIN))
        if not _BEGIN.startswith(torn) and torn.strip(b"\0"):  # NULs: the power failed
            raise InputError(f"{path}: is not of clq-client batch; take another file for --out")
        file.truncate(end)
        os.fsync(file.fileno())
    return size - end
