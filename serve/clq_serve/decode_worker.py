"""One process that decodes images for the service, so that a crash costs one image.

Run as `python -m clq_serve.decode_worker SOCKET MEMORY LIMIT`: two inherited file descriptors, and
how many bytes it may use on top of what it has at its start.  It says "ready" once; then each line
of JSON on the socket is one image, whose bytes lie at the start of the shared memory, and is
answered by one line; the pixels then lie at the start of the shared memory.

It imports the image code only: no web framework, no engine.  Nothing that goes through the socket
is executed: lines are JSON, errors are named from a fixed list.
"""

import json
import mmap
import resource
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clq_serve.errors import ImageError, ImageTooLarge
from clq_serve.preprocess import ImageLimits, InputRule, decode_image, prepare


def main() -> None:
    """Decodes until the service closes its end of the socket."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    memory, limit = int(sys.argv[2]), int(sys.argv[3])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
    with connection, connection.makefile("rwb") as lines:
        lines.write(b"ready\n")
        lines.flush()
        for line in lines:
            asked = json.loads(line)
            with mmap.mmap(memory, asked["capacity"]) as shared:
                answer = _answer(asked, shared)
            lines.write(json.dumps(answer).encode() + b"\n")
            lines.flush()


def _answer(asked: dict[str, Any], shared: mmap.mmap) -> dict[str, Any]:
    try:
        limits = ImageLimits(**asked["limits"])
        rule = input_rule(asked["rule"])
        image = decode_image(shared[: asked["bytes"]], limits, rule.background)
        pixels, geometry = prepare(image.pixels, rule)
        shared[: pixels.nbytes] = pixels.tobytes()
    except MemoryError:
        return _problem(ImageTooLarge("decoding it takes more memory than decode_memory_bytes"))
    except ImageError as err:
        return _problem(err)
    return {
        "format": image.format,
        "orientation_applied": image.orientation_applied,
        "geometry": asdict(geometry),
    }


def input_rule(fields: dict[str, Any]) -> InputRule:
    """The rule whose fields went through JSON."""
    colours = {name: tuple(fields[name]) for name in ("pad_value", "background")}
    return InputRule(**(fields | colours))


def _problem(err: ImageError) -> dict[str, Any]:
    return {
        "error": type(err).__name__,
        "detail": err.detail,
        "code": err.code,
        "extra": err.extra,
    }


if __name__ == "__main__":
    main()
