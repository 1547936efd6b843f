"""How many images are on the way at once: what the service takes, found by trying.

Additive increase, multiplicative decrease, as in TCP (RFC 5681): one more for each round that goes
well, half after a refusal.  Near the number that was refused last it grows ten times slower, so
that few images are sent only to be refused.  While the service is gone, one image at a time asks
for it.
"""

import asyncio
import math
import time
from types import TracebackType

from clq_client.errors import ClqError, ConnectionFailed
from clq_client.retry import backoff_s

FIRST_LIMIT = 4
_CAREFUL = 0.1  # of the usual growth


class ServiceGone(Exception):
    """No image has ended for too long, though all the time some were tried."""

    def __init__(self, error: ClqError, patience_s: float) -> None:
        super().__init__(f"no result for {patience_s:g} s; the last reason: {error}")
        self.error = error


class Pace:
    """Slots for `async with`: `limit` of them, between 1 and `most`.

    patience_s  how long no image may end before the service counts as gone
    """

    def __init__(self, most: int, patience_s: float) -> None:
        self.limit = float(min(FIRST_LIMIT, most))
        self._most = most
        self._patience_s = patience_s
        self._in_flight = 0
        self._failures_in_row = 0
        self._slower_since_s = 0.0
        self._full_at = math.inf  # the limit at the last refusal
        self._alive_s = time.monotonic()
        self._paused_until_s = 0.0
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> float:
        """Waits for a slot; the time at which it was given."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._in_flight < int(self.limit))
            self._in_flight += 1
        try:
            while (wait_s := self._paused_until_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
        except asyncio.CancelledError:
            self._in_flight -= 1
            raise
        return time.monotonic()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._in_flight -= 1
        async with self._changed:
            self._changed.notify_all()

    def answered(self) -> None:
        """An image has ended: its result, or the service's word that it will never have one."""
        self._alive_s = time.monotonic()
        self._failures_in_row = 0
        if self.limit > self._full_at + 1:
            self._full_at = math.inf  # the service takes more than it did
        growth = 1.0 if self.limit < self._full_at - 1 else _CAREFUL
        self.limit = min(self.limit + growth / self.limit, float(self._most))

    def failed(self, error: ClqError, sent_s: float) -> float:
        """How long an image that could not be sent now waits; `sent_s` is when it had its slot.

        The wait grows with the rounds in which nothing went well, not with the image's own
        attempts: one that is unlucky beside a healthy service need not wait long.  Retry-After
        is for this image where the service is full, and for all where it wants no request.

        Raises ServiceGone where the patience is at its end.
        """
        now_s = time.monotonic()
        if now_s - self._alive_s > self._patience_s:
            raise ServiceGone(error, self._patience_s) from error
        self._failures_in_row += 1
        asked_s = min(error.retry_after_s or 0.0, self._patience_s - (now_s - self._alive_s))
        if error.code != "overloaded":  # a service that is full still takes what is on the way
            self._paused_until_s = max(self._paused_until_s, now_s + asked_s)
        if isinstance(error, ConnectionFailed):  # a cut says nothing about load; many in a row do
            if self._failures_in_row > self.limit:
                self.limit = 1.0
        elif sent_s > self._slower_since_s:  # once for all that was on the way at that time
            self._slower_since_s = now_s
            self._full_at = int(self.limit)
            self.limit = max(1.0, self.limit / 2)
        rounds = int(self._failures_in_row / self.limit)
        return backoff_s(1 + rounds, asked_s)
