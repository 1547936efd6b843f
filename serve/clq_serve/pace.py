"""How fast images have run lately: what estimates of waiting and running times are made of."""

import statistics
from collections import deque
from collections.abc import Hashable

RECENT_RUNS = 16  # of one model
RECENT_BATCHES = 16  # of all models; few, because a machine's speed changes with its other work
MODELS = 64  # the one not heard of for longest is forgotten


class Pace:
    """Recent run times, per model and per pixel, and of all models per image."""

    def __init__(self) -> None:
        self._per_pixel: dict[Hashable, deque[float]] = {}  # seconds per padded pixel
        self._decoded: deque[float] = deque(maxlen=RECENT_BATCHES)  # seconds
        self._batches: deque[tuple[int, float]] = deque(maxlen=RECENT_BATCHES)  # images, seconds

    def ran(self, model: Hashable, images: int, pixels: int, run_s: float, alone: bool) -> None:
        """One batch has run for `run_s` seconds; `alone`: with all cores, which says nothing about
        how fast a queue drains.
        """
        recent = self._per_pixel.pop(model, None) or deque(maxlen=RECENT_RUNS)
        recent.append(run_s / pixels)
        self._per_pixel[model] = recent  # now the newest entry of the dict
        if len(self._per_pixel) > MODELS:
            del self._per_pixel[next(iter(self._per_pixel))]
        if not alone or not self._batches:
            self._batches.append((images, run_s))

    def decoded(self, decode_s: float) -> None:
        """One image was decoded in that time."""
        self._decoded.append(decode_s)

    def decode_s_per_image(self) -> float:
        """How long the decoding of one image takes, lately; 0 while none was decoded."""
        return statistics.fmean(self._decoded) if self._decoded else 0.0

    def usual_run_s(self, model: Hashable, pixels: int) -> float:
        """The run time of that many pixels at the median recent pace; 0 while it is unknown."""
        return statistics.median(self._per_pixel.get(model, (0.0,))) * pixels

    def most_run_s(self, model: Hashable, pixels: int) -> float:
        """The run time of that many pixels at the slowest recent pace; 0 while it is unknown."""
        return max(self._per_pixel.get(model, (0.0,))) * pixels

    def lane_s_per_image(self) -> float:
        """How long a busy lane takes for one image, lately; 0 while nothing has run."""
        images = sum(images for images, _ in self._batches)
        return sum(run_s for _, run_s in self._batches) / images if images else 0.0
