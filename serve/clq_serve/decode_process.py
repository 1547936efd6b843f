"""A decoding process as the service sees it: started, asked, and replaced when it dies."""

import contextlib
import json
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clq_serve.errors import (
    CorruptImage,
    DecoderCrashed,
    EngineError,
    ImageError,
    ImageTooLarge,
    TooManyFrames,
    TruncatedImage,
    UnsupportedImage,
)
from clq_serve.preprocess import Geometry, ImageLimits, InputRule, Pixels

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
_ERRORS: dict[str, type[ImageError]] = {
    kind.__name__: kind
    for kind in (CorruptImage, ImageTooLarge, TooManyFrames, TruncatedImage, UnsupportedImage)
}


@dataclass(frozen=True, slots=True)
class PreparedByProcess:
    """An image that was decoded, resized and padded elsewhere."""

    pixels: Pixels
    geometry: Geometry
    format: str
    orientation_applied: bool


class DecodeProcess:
    """One process and the memory that is shared with it; used by one thread at a time.

    memory_bytes  what it may use on top of what it has at its start
    """

    def __init__(self, limits: ImageLimits, memory_bytes: int) -> None:
        self._limits = asdict(limits)
        self._memory_bytes = memory_bytes
        self._memory = _shared_memory()
        self._capacity = 0
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def decode(
        self, data: bytes, rule: InputRule, most_bytes: int, limit_s: float
    ) -> PreparedByProcess:
        """The image in `data`, as the rule wants it.

        most_bytes  what the prepared pixels take at most
        limit_s     when the process is killed, because nobody waits for the image any more

        Raises ImageError; DecoderCrashed, an ImageError, if the process died with this image;
        TimeoutError when it was killed; EngineError if no process can be started.
        """
        if self._process.poll() is not None:  # it died with nothing to do: nobody's fault
            log.warning("decoding process %d is gone and is replaced", self._process.pid)
            self._replace()
        asked = {"bytes": len(data), "limits": self._limits, "rule": asdict(rule)}
        self._wait_until_ready()
        try:
            self._connection.settimeout(max(0.01, limit_s))
            answer = self._ask(data, asked, max(len(data), most_bytes))
        except TimeoutError:
            self._replace()
            raise
        except OSError as err:
            why = self._end()
            self._start()
            raise DecoderCrashed(f"the process that decoded the image {why}") from err
        if "error" in answer:
            kind = _ERRORS[answer["error"]]
            raise kind(answer["detail"], code=answer["code"], extra=answer["extra"])
        geometry = Geometry(**answer["geometry"])
        return PreparedByProcess(
            self._pixels(geometry), geometry, answer["format"], answer["orientation_applied"]
        )

    def close(self) -> None:
        """Ends the process."""
        self._end()
        os.close(self._memory)

    def _ask(self, data: bytes, asked: dict[str, Any], capacity: int) -> dict[str, Any]:
        """The answer of the process.  Raises OSError if it ends without one, or takes too long."""
        if capacity > self._capacity:
            os.ftruncate(self._memory, capacity)
            self._capacity = capacity
        with mmap.mmap(self._memory, self._capacity) as shared:
            shared[: len(data)] = data
        self._lines.write(json.dumps(asked | {"capacity": self._capacity}).encode() + b"\n")
        self._lines.flush()
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the process closed its socket")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _pixels(self, geometry: Geometry) -> Pixels:
        """A copy: the next image overwrites the shared memory."""
        shape = (geometry.padded_height, geometry.padded_width, 3)
        with mmap.mmap(self._memory, self._capacity) as shared:
            return np.frombuffer(shared[: int(np.prod(shape))], np.uint8).reshape(shape)

    def _start(self) -> None:
        self._connection, theirs = socket.socketpair()
        self._connection.settimeout(START_TIMEOUT_S)
        with theirs:
            descriptors = (theirs.fileno(), self._memory)
            arguments = [*map(str, descriptors), str(self._memory_bytes)]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "clq_serve.decode_worker", *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,  # Ctrl-C is for the service, which then ends them
                # Threads of a linear algebra library would count as memory, and have nothing to do.
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        self._lines = self._connection.makefile("rwb")
        self._ready = False

    def _wait_until_ready(self) -> None:
        if not self._ready:
            self._connection.settimeout(START_TIMEOUT_S)
            if self._lines.readline() != b"ready\n":
                why = self._end()
                self._start()
                raise EngineError(f"a decoding process {why} at its start")
            self._ready = True

    def _replace(self) -> None:
        self._end()
        self._start()

    def _end(self) -> str:
        """Kills the process, if it still runs; returns how it ended, for a sentence."""
        code = self._process.poll()
        if code is None:
            try:  # a moment for one that is dying, or its end would be taken for ours
                code = self._process.wait(0.2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                code = self._process.wait()
        with contextlib.suppress(OSError):
            self._lines.close()
        self._connection.close()
        return f"died ({signal.Signals(-code).name})" if code < 0 else f"ended with status {code}"


def _shared_memory() -> int:
    """A file descriptor of memory that other processes can map; a file where there is no memfd."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("clq-decode")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
