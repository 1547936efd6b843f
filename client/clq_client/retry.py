"""Whether, when and how long a call is tried again.  The only place that decides it.

Detection changes nothing in the service, so that sending an image twice is safe.
"""

import random
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from clq_client.errors import ClqError, ConnectionFailed

RETRIED_STATUSES = frozenset({408, 429, 502, 503, 504})
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 8.0
LONGEST_RETRY_AFTER_S = 60.0


class Attempts:
    """The attempts of one call: at most 1 + retries, with their waits within deadline_s."""

    def __init__(self, retries: int, deadline_s: float) -> None:
        self._retries = retries
        self._ends_s = time.monotonic() + deadline_s
        self._sent = 0

    def next_timeout_s(self) -> float:
        """Counts one more attempt; how long it may take, > 0."""
        self._sent += 1
        return max(self._ends_s - time.monotonic(), 1e-3)

    def wait_s(self, error: ClqError) -> float:
        """How long to wait after `error` before the next attempt.

        Raises `error` itself where no attempt is left, or none that could begin in time.
        """
        error.attempts = self._sent
        if self._sent > self._retries or not should_retry(error):
            raise error
        wait_s = backoff_s(self._sent, error.retry_after_s)
        if time.monotonic() + wait_s >= self._ends_s:
            raise error
        return wait_s


def should_retry(error: ClqError) -> bool:
    """Whether the same request may do better later."""
    if error.retry_after_s is not None and error.retry_after_s > LONGEST_RETRY_AFTER_S:
        return False
    return is_passing(error)


def is_passing(error: ClqError) -> bool:
    """Whether the error is about this moment, not about the request."""
    return isinstance(error, ConnectionFailed) or error.status in RETRIED_STATUSES


def backoff_s(attempt: int, asked_s: float | None) -> float:
    """Seconds to wait after attempt 1, 2, ...: full jitter, on top of what the service asked for.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempt - 1, 20))
    jitter_s = random.uniform(0.0, longest_s)
    return jitter_s + (asked_s or 0.0)


def retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, >= 0; None where it is missing or unreadable.

    Both forms of RFC 9110, section 10.2.3: whole seconds and a date.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max((date - datetime.now(UTC)).total_seconds(), 0.0)
