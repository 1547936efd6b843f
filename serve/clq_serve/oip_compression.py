"""Content-Encoding of inference answers.

Other answers of the protocol are never compressed: tritonclient's asyncio client announces on every
route that it takes compressed answers, but expands those of inference only.
"""

import gzip
import zlib

CODINGS = ("gzip", "deflate")


def compress(body: bytes, coding: str) -> bytes:
    """`body` compressed; `coding` is one of CODINGS ("deflate" is a zlib stream in HTTP)."""
    return gzip.compress(body, mtime=0) if coding == "gzip" else zlib.compress(body)


def wanted_coding(accept_encoding: str) -> str | None:
    """The one of CODINGS in which the client wants its answer; None = as it is.

    A list without weights says what a client can read, not what it wants (aiohttp always sends
    one, and tritonclient relies on getting no surprise), so that only a lone coding or weights ask
    for compression.
    """
    weights: dict[str, float] = {}
    for item in accept_encoding.lower().split(","):
        name, _, weight = item.partition(";")
        weights[name.strip()] = _weight(weight)
    if len(weights) > 1 and ";" not in accept_encoding:
        return None
    best = max(CODINGS, key=lambda coding: weights.get(coding, 0.0))
    wanted = weights.get(best, 0.0)
    return best if wanted > 0 and wanted >= weights.get("identity", 0.0) else None


def _weight(text: str) -> float:
    """Of `q=0.5`; 1 without, 0 if malformed."""
    if not text.strip():
        return 1.0
    name, _, value = text.partition("=")
    try:
        return min(1.0, max(0.0, float(value))) if name.strip() == "q" else 0.0
    except ValueError:
        return 0.0
