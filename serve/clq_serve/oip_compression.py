"""Content-Encoding of inference bodies, both ways.

Bodies of other routes are never compressed: tritonclient's asyncio client announces that it takes
compressed answers on every route but expands those of inference only.
"""

import gzip
import zlib

from clq_serve.errors import BadInferRequest, BodyTooLarge, UnsupportedEncoding

CODINGS = ("gzip", "deflate")
_WBITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # deflate is a zlib stream


def inflate(body: bytes, coding: str, max_bytes: int) -> bytes:
    """`body` expanded; `coding` is the value of Content-Encoding, "" = none.

    Raises UnsupportedEncoding, BadInferRequest (damaged or incomplete), or BodyTooLarge before more
    than max_bytes are held.
    """
    name = coding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in CODINGS:
        raise UnsupportedEncoding(
            f"Content-Encoding is {name[:40]!r}; accepted: {', '.join(CODINGS)}",
            extra={"accepted": list(CODINGS)},
        )
    decompressor = zlib.decompressobj(_WBITS[name])
    try:
        expanded = decompressor.decompress(body, max_bytes + 1)
    except zlib.error as err:
        raise BadInferRequest(f"the body is not {name}: {err}") from None
    if len(expanded) > max_bytes:
        raise BodyTooLarge(
            f"the expanded body has more than {max_bytes} bytes, which are accepted",
            extra={"limit": max_bytes, "observed": len(expanded)},
        )
    if not decompressor.eof:
        raise BadInferRequest(f"the {name} body stops before its end")
    if decompressor.unused_data:
        raise BadInferRequest(f"{len(decompressor.unused_data)} bytes follow the {name} body")
    return expanded


def deflate(body: bytes, coding: str) -> bytes:
    """`body` compressed; `coding` is one of CODINGS."""
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
