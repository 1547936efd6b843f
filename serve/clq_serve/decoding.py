"""From the bytes of an upload to the input of a model, in a bounded pool of threads."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from clq_serve.detector import Prepared
from clq_serve.errors import ClientLeft
from clq_serve.preprocess import ImageLimits, InputRule, decode_image, prepare


@dataclass(frozen=True, slots=True)
class DecodedUpload:
    """What an image holds while it waits for an engine: not the pixels at their full size.

    width, height  of the upright image
    sha256         of the uploaded bytes
    """

    width: int
    height: int
    format: str
    orientation_applied: bool
    prepared: Prepared
    sha256: str
    decode_s: float


class Decoders:
    """The pool; at most `threads` images are decoded at a time."""

    def __init__(self, threads: int, limits: ImageLimits) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def decode(
        self, data: bytes, rule: InputRule, unwanted: Callable[[], bool]
    ) -> DecodedUpload:
        """The image in `data` as the rule wants it.

        unwanted  whether nobody waits for it any more, asked when its turn has come

        Raises ImageError, ClientLeft.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._decode, data, rule, unwanted)

    def _decode(self, data: bytes, rule: InputRule, unwanted: Callable[[], bool]) -> DecodedUpload:
        if unwanted():
            raise ClientLeft("the client left before its image was decoded")
        return decode_upload(data, self._limits, rule)

    async def run(self, draw: Callable[[], bytes]) -> bytes:
        """What `draw` gives: other work that images need, in its turn with the decoding."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, draw)

    def close(self) -> None:
        """Waits for what is being decoded; the rest is cancelled."""
        self._pool.shutdown(cancel_futures=True)


def decode_upload(data: bytes, limits: ImageLimits, rule: InputRule) -> DecodedUpload:
    """The same, in the calling thread."""
    start = time.perf_counter()
    image = decode_image(data, limits, rule.background)
    return DecodedUpload(
        width=image.pixels.shape[1],
        height=image.pixels.shape[0],
        format=image.format,
        orientation_applied=image.orientation_applied,
        prepared=Prepared(*prepare(image.pixels, rule)),
        sha256=hashlib.sha256(data).hexdigest(),
        decode_s=time.perf_counter() - start,
    )
