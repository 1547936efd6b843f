"""Decoded images in memory that a process and the workers forked from it have in common."""

import mmap
import multiprocessing
from collections.abc import Sequence

import numpy as np

from clq_train.errors import ConfigError


class PixelCache:
    """Up to `limit` bytes of images, counted once however many workers read and fill it.

    Which images are kept is settled by their sizes: in order, each that still fits. An epoch shows
    every image once, so a cache of those seen last would have lost each before it comes again.

    The memory is anonymous: a container's /dev/shm is often 64 MiB small, and a write beyond it
    kills the process. It is taken from the system as it is filled.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], limit: int) -> None:
        """sizes  height and width of each image.  Raises ConfigError for more than there is."""
        self._sizes = sizes
        self._start = np.full(len(sizes), -1, np.int64)
        used = 0
        for index, (height, width) in enumerate(sizes):
            if used + 3 * height * width <= limit:
                self._start[index] = used
                used += 3 * height * width
        try:
            self._memory = mmap.mmap(-1, used + len(sizes) + 1)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"run.cache_mib: no {used / 2**20:.0f} MiB of memory: {error}"
            ) from error
        self._filled = np.frombuffer(self._memory, np.uint8, len(sizes), used)
        # What it guards is one byte, but it also makes the pixels visible before that byte.
        self._lock = multiprocessing.Lock()

    def get(self, index: int) -> np.ndarray | None:
        """(H, W, 3) the image's pixels, not to be written to; None if nobody has put them yet."""
        if self._start[index] < 0:
            return None
        with self._lock:
            filled = bool(self._filled[index])
        return self._place(index) if filled else None

    def put(self, index: int, pixels: np.ndarray) -> None:
        """Keeps the pixels if they are among those to be kept; two may do so at once."""
        if self._start[index] >= 0:
            self._place(index)[:] = pixels
            with self._lock:
                self._filled[index] = 1

    def _place(self, index: int) -> np.ndarray:
        height, width = self._sizes[index]
        flat = np.frombuffer(self._memory, np.uint8, 3 * height * width, int(self._start[index]))
        return flat.reshape(height, width, 3)
