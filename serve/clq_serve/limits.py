"""How many requests one key may make, in a second and at a time."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """None = no limit.

    requests_per_s  how many a second in the long run
    burst           how many at once after a pause, >= 1
    concurrent      how many inside at a time
    """

    requests_per_s: float | None
    burst: int
    concurrent: int | None


class Limiter:
    """A token bucket and a counter: it is filled with requests_per_s and holds `burst` at most."""

    def __init__(self, limits: KeyLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.inside = 0
        self._clock = clock
        self._tokens = float(limits.burst)
        self._filled_s = clock()

    def wait_s(self) -> float:
        """0 and one token less if a request may come in now; else seconds until one may."""
        rate = self.limits.requests_per_s
        if rate is None:
            return 0.0
        now_s = self._clock()
        gained = (now_s - self._filled_s) * rate
        self._tokens = min(float(self.limits.burst), self._tokens + gained)
        self._filled_s = now_s
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / rate
        self._tokens -= 1.0
        return 0.0

    @property
    def full(self) -> bool:
        """Whether as many requests are inside as may be."""
        return self.limits.concurrent is not None and self.inside >= self.limits.concurrent

    def headers(self) -> dict[str, str]:
        """RateLimit-Policy and RateLimit, as the IETF draft has them; none without a rate."""
        rate = self.limits.requests_per_s
        if rate is None:
            return {}
        window_s = math.ceil(self.limits.burst / rate)
        reset_s = math.ceil((self.limits.burst - self._tokens) / rate)
        return {
            "RateLimit-Policy": f'"key";q={self.limits.burst};w={window_s}',
            "RateLimit": f'"key";r={int(self._tokens)};t={reset_s}',
        }
