"""The images that a command line means, one after the other: no list of names is ever held.

A folder is read entry by entry in the order of the file system, because sorting a million names
would need them all in memory.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from clq_client.batch.video import VIDEO_SUFFIXES, FrameChoice, frames, require_av
from clq_client.inputs import IMAGE_SUFFIXES, InputError
from clq_client.run import Job

STDIN = "-"
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where the images are.

    paths      folders, files, patterns with * ? [] and **, and "-" for names on stdin
    null       the names on stdin end with a NUL, as `find -print0` writes them
    root       keys are relative to it; None: keys are the paths as given
    frames     which frames of videos; None: videos are not looked at
    annotated  folder of the copies with boxes; None: none
    """

    paths: Sequence[str]
    null: bool = False
    root: Path | None = None
    frames: FrameChoice | None = None
    annotated: Path | None = None

    def check(self) -> None:
        """Raises InputError for a path that is not there and for what would be ambiguous."""
        for path in self.paths:
            if path != STDIN and not os.path.lexists(path) and not is_pattern(path):
                raise InputError(f"{path}: no such file or folder")
            if self.frames is None and is_video(path) and os.path.isfile(path):
                raise InputError(f"{path}: is a video; say which frames: --every N or --fps F")
            inside = self.annotated is not None and os.path.isdir(path)
            if inside and _is_below(str(self.annotated), path):
                # The next run would take the annotated copies for images.
                raise InputError(f"--annotate {self.annotated}: lies inside the input {path}")
        if self.frames is not None:
            require_av()
        if self.root is not None and not self.root.is_dir():
            raise InputError(f"--root {self.root}: is not a folder")

    def countable(self) -> bool:
        """Whether a second walk says how many images there are."""
        return STDIN not in self.paths and self.frames is None

    def names(self) -> Iterator[str | OSError]:
        """The paths of all images and videos, as given; an OSError for a folder not readable."""
        for path in self.paths:
            if path == STDIN:
                yield from names_of(sys.stdin.buffer, b"\0" if self.null else b"\n")
            elif os.path.isdir(path):
                yield from self._wanted(files_below(path))
            elif os.path.lexists(path):
                yield path
            else:
                yield from matches(path)

    def jobs(self) -> Iterator[Job]:
        """A job for each image and each wanted frame; what cannot be read says why."""
        for name in self.names():
            if isinstance(name, OSError):
                yield Job(self._key(name.filename), name)
                continue
            key = self._key(name)
            if self.root is not None and key.startswith(".." + os.sep):
                yield Job(name, OSError(f"{name}: is not below --root {self.root}"))
            elif self.frames is not None and is_video(name):
                for frame, source in frames(Path(name), key, self.frames):
                    frame_key = key if frame is None else f"{key}#frame={frame.index}"
                    yield Job(frame_key, source, self._copy(frame_key), frame)
            else:
                yield Job(key, Path(name), self._copy(key))

    def _wanted(self, names: Iterable[str | OSError]) -> Iterator[str | OSError]:
        suffixes = IMAGE_SUFFIXES if self.frames is None else IMAGE_SUFFIXES + VIDEO_SUFFIXES
        for name in names:
            if isinstance(name, OSError) or name.lower().endswith(suffixes):
                yield name

    def _key(self, name: str) -> str:
        if self.root is not None:
            return os.path.relpath(name, self.root)
        while name.startswith("./"):
            name = name[2:].lstrip("/")
        return name

    def _copy(self, key: str) -> Path | None:
        return None if self.annotated is None else self.annotated / copy_name(key)


def files_below(folder: str) -> Iterator[str | OSError]:
    """Every file below the folder.  Links to files are followed, links to folders are not."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_file():
                        yield entry.path
        except OSError as error:
            yield error


def names_of(file: BinaryIO, end: bytes) -> Iterator[str]:
    """The names in a stream, each ended by `end`; empty ones are nothing."""
    rest = b""
    while data := file.read1(_READ_BYTES) if hasattr(file, "read1") else file.read(_READ_BYTES):
        *whole, rest = (rest + data).split(end)
        yield from (os.fsdecode(name) for name in whole if name)
    if rest:
        yield os.fsdecode(rest)


def is_pattern(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def is_video(path: str) -> bool:
    return path.lower().endswith(VIDEO_SUFFIXES)


def matches(pattern: str) -> Iterator[str | OSError]:
    """The files that a pattern means, read folder by folder from its first fixed part."""
    fixed: list[str] = []
    for part in pattern.split("/")[:-1]:
        if is_pattern(part):
            break
        fixed.append(part)
    base = "/".join(fixed) or ("/" if pattern.startswith("/") else ".")
    wanted = re.compile(pattern_regex(pattern), re.DOTALL)
    for name in files_below(base) if os.path.isdir(base) else ():
        if isinstance(name, OSError) or wanted.fullmatch(name.removeprefix("./")):
            yield name


def pattern_regex(pattern: str) -> str:
    """The pattern as a regular expression: * and ? stay in a folder, **/ is any depth."""
    parts: list[str] = []
    place = 2 if pattern.startswith("./") else 0
    while place < len(pattern):
        if pattern.startswith("**/", place):
            parts.append("(?:[^/]+/)*")
            place += 3
        elif pattern[place] == "*":
            parts.append(".*" if pattern[place:] == "**" else "[^/]*")
            place += 2 if pattern[place:] == "**" else 1
        elif pattern[place] == "?":
            parts.append("[^/]")
            place += 1
        elif found := re.compile(r"\[(!?)([^/\]]+)\]").match(pattern, place):
            inside = found[2].replace("\\", "\\\\").replace("^", "\\^").replace("[", "\\[")
            parts.append(f"[{'^/' if found[1] else ''}{inside}]")
            place = found.end()
        else:
            parts.append(re.escape(pattern[place]))
            place += 1
    return "".join(parts)


def copy_name(key: str) -> str:
    """The name of an annotated copy below its folder: the key's folders, and one more suffix.

    a/home.jpg -> a/home.jpg.png; /a/x.png -> (root)/a/x.png.png; ../x.png -> (up)/x.png.png
    """
    parts = ["(up)" if part == ".." else part for part in key.split("/") if part not in ("", ".")]
    return "/".join([*(["(root)"] if key.startswith("/") else []), *parts]) + ".png"


def _is_below(path: str, folder: str) -> bool:
    inside, outside = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath([inside, outside]) == outside
