"""From the bytes of an upload to the input of a model, in a bounded pool of workers."""

import asyncio
import hashlib
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

from clq_serve.decode_process import DecodeProcess
from clq_serve.detector import Prepared
from clq_serve.errors import ClientLeft
from clq_serve.preprocess import ImageLimits, InputRule, Pixels, decode_image, prepare


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
    """The pool; at most `threads` images are decoded at a time, others wait their turn.

    processes     how many processes of their own decode, so that one that crashes takes one image
                  with it and nothing else; 0 = the threads of the service do it. There are as many
                  threads as processes then, each waits for one
    memory_bytes  what each process may use
    """

    def __init__(
        self, threads: int, limits: ImageLimits, processes: int = 0, memory_bytes: int = 2**30
    ) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(processes or threads, thread_name_prefix="decode")
        self._processes = [DecodeProcess(limits, memory_bytes) for _ in range(processes)]
        self._free: SimpleQueue[DecodeProcess] = SimpleQueue()
        for process in self._processes:
            self._free.put(process)

    async def decode(
        self, data: bytes, rule: InputRule, unwanted: Callable[[], bool], deadline_s: float
    ) -> DecodedUpload:
        """The image in `data` as the rule wants it.

        unwanted    whether nobody waits for it any more, asked when its turn has come
        deadline_s  time.monotonic() at which nobody does

        Raises ImageError, ClientLeft, or TimeoutError when that time has come.
        """
        loop = asyncio.get_running_loop()
        decode = self._decode_elsewhere if self._processes else self._decode_here
        return await loop.run_in_executor(self._pool, decode, data, rule, unwanted, deadline_s)

    async def draw(
        self, data: bytes, rule: InputRule, deadline_s: float, drawn: Callable[[Pixels], bytes]
    ) -> bytes:
        """What `drawn` makes of the image in `data`, in its turn and decoded as all others are.

        Raises ImageError, or TimeoutError when the time has come.
        """
        decode = self._decode_elsewhere if self._processes else self._decode_here

        def work() -> bytes:
            return drawn(decode(data, rule, lambda: False, deadline_s).prepared.pixels)

        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def pids(self) -> list[int]:
        """The processes that decode."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """Waits for what is being decoded; the rest is cancelled."""
        self._pool.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()

    def _decode_here(
        self, data: bytes, rule: InputRule, unwanted: Callable[[], bool], deadline_s: float
    ) -> DecodedUpload:
        _refuse_unwanted(unwanted, deadline_s)
        return decode_upload(data, self._limits, rule)

    def _decode_elsewhere(
        self, data: bytes, rule: InputRule, unwanted: Callable[[], bool], deadline_s: float
    ) -> DecodedUpload:
        _refuse_unwanted(unwanted, deadline_s)
        start = time.perf_counter()
        process = self._free.get()  # at once: there are as many as threads of the pool
        try:
            limit_s = deadline_s - time.monotonic()
            image = process.decode(data, rule, 3 * most_pixels(rule), limit_s)
        finally:
            self._free.put(process)
        return DecodedUpload(
            width=image.geometry.width,
            height=image.geometry.height,
            format=image.format,
            orientation_applied=image.orientation_applied,
            prepared=Prepared(image.pixels, image.geometry),
            sha256=hashlib.sha256(data).hexdigest(),
            decode_s=time.perf_counter() - start,
        )


def decode_upload(data: bytes, limits: ImageLimits, rule: InputRule) -> DecodedUpload:
    """The image in `data` as the rule wants it, decoded in the calling thread."""
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


def most_pixels(rule: InputRule) -> int:
    """The most pixels that an image can have once it is resized and padded."""
    return math.prod(
        -(-side // rule.multiple) * rule.multiple for side in (rule.shorter_px, rule.longer_px)
    )


def _refuse_unwanted(unwanted: Callable[[], bool], deadline_s: float) -> None:
    if unwanted():
        raise ClientLeft("the client left before its image was decoded")
    if time.monotonic() >= deadline_s:
        raise TimeoutError
