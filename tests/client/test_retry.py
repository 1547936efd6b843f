"""When a call is sent again, how long it waits, and when it gives up."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clq_client import (
    AsyncClient,
    Client,
    ClqError,
    ConnectionFailed,
    DeadlineExceeded,
    ImageRefused,
    NotReady,
    Overloaded,
    UnexpectedAnswer,
)
from clq_client.retry import LONGEST_WAIT_S, backoff_s, retry_after_s


def detect_sync(url, image, **settings):
    with Client(url, **settings) as client:
        return client.detect(image)


def detect_async(url, image, **settings):
    async def call():
        async with AsyncClient(url, **settings) as client:
            return await client.detect(image)

    return asyncio.run(call())


@pytest.fixture(params=[detect_sync, detect_async], ids=["sync", "async"])
def detect(request):
    return request.param


@pytest.fixture
def short_waits(monkeypatch):
    """Waits before a retry of 20 ms at most, for tests that only count."""
    monkeypatch.setattr("clq_client.retry.LONGEST_WAIT_S", 0.02)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_status_that_passes_is_tried_again(peer, png, detect, status):
    peer.problem(status)
    assert detect(peer.url, png).model.name == "fake"
    assert [seen.body for seen in peer.seen] == [png, png]
    assert len({seen.headers["x-request-id"] for seen in peer.seen}) == 1


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("cut", ["before", "body"])
def test_a_connection_that_is_cut_is_tried_again(peer, png, detect, cut):
    peer.answers(cut=cut)
    assert detect(peer.url, png).model.name == "fake"
    assert len(peer.seen) == 2


@pytest.mark.usefixtures("short_waits")
def test_a_connection_that_is_always_cut_is_a_failed_connection(peer, png, detect):
    for _ in range(2):
        peer.answers(cut="body")
    with pytest.raises(ConnectionFailed) as caught:
        detect(peer.url, png, retries=1)
    assert caught.value.attempts == 2
    assert caught.value.request_id == peer.seen[0].headers["x-request-id"]


@pytest.mark.parametrize(
    ("status", "code", "kind"), [(422, "truncated", ImageRefused), (500, "", ClqError)]
)
def test_what_will_not_pass_is_sent_once(peer, png, detect, status, code, kind):
    peer.problem(status, code)
    with pytest.raises(kind):
        detect(peer.url, png)
    assert len(peer.seen) == 1


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("retries", [0, 2])
def test_retries_are_counted(peer, png, detect, retries):
    for _ in range(5):
        peer.problem(503, "draining")
    with pytest.raises(NotReady) as caught:
        detect(peer.url, png, retries=retries)
    assert len(peer.seen) == retries + 1
    assert caught.value.attempts == retries + 1


def test_retry_after_is_waited_for(peer, png, detect):
    peer.problem(503, "overloaded", retry_after=1)
    detect(peer.url, png)
    waited_s = peer.seen[1].at_s - peer.seen[0].at_s
    assert 1.0 <= waited_s < 2.0  # the jitter after the first attempt is 0.25 s at most


@pytest.mark.parametrize(("retry_after", "deadline_s"), [(61, 1000.0), (5, 4.0)])
def test_a_wait_that_is_too_long_is_not_begun(peer, png, detect, retry_after, deadline_s):
    peer.problem(429, "rate", retry_after=retry_after)
    start_s = time.monotonic()
    with pytest.raises(Overloaded) as caught:
        detect(peer.url, png, deadline_s=deadline_s)
    assert time.monotonic() - start_s < 1.0
    assert caught.value.retry_after_s == retry_after
    assert len(peer.seen) == 1


def test_a_slow_answer_ends_at_the_deadline(peer, png, detect):
    peer.answers(delay_s=1.5)
    start_s = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s") as caught:
        detect(peer.url, png, deadline_s=0.3)
    assert 0.3 <= time.monotonic() - start_s < 1.0
    assert caught.value.request_id
    assert len(peer.seen) == 1


def test_a_dripping_answer_ends_at_the_deadline(peer, png, detect):
    peer.answers(drip_s=0.02)
    start_s = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        detect(peer.url, png, deadline_s=0.4)
    assert 0.4 <= time.monotonic() - start_s < 1.0


def test_headers_that_never_end_are_left_at_the_deadline(peer, png, detect):
    peer.answers(header_drip_s=0.02)
    start_s = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        detect(peer.url, png, deadline_s=0.4)
    assert 0.4 <= time.monotonic() - start_s < 2.0


def test_a_pause_in_the_answer_does_not_stretch_the_deadline(peer, png, detect):
    peer.answers(drip_s=1.5)  # the second byte would come after the deadline of 0.5 s
    start_s = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        detect(peer.url, png, deadline_s=0.5)
    assert 0.5 <= time.monotonic() - start_s < 1.4


def test_the_service_is_told_what_is_left_of_the_deadline(peer, png, detect):
    peer.problem(503, "overloaded", retry_after=1)
    detect(peer.url, png, deadline_s=8.0)
    first, second = (int(seen.headers["x-request-timeout-ms"]) for seen in peer.seen)
    assert 7000 < first <= 8000
    assert 5000 < second <= first - 1000


def test_the_deadline_is_for_all_attempts_together(peer, png, detect):
    for _ in range(4):
        peer.steps.append(peer.problem_step(503))
        peer.steps[-1].delay_s = 0.4
    start_s = time.monotonic()
    with pytest.raises((DeadlineExceeded, NotReady)):
        detect(peer.url, png, deadline_s=0.9)
    assert time.monotonic() - start_s < 1.2
    assert 2 <= len(peer.seen) <= 3


def test_an_answer_that_is_no_answer_is_not_asked_for_again(peer, png, detect):
    peer.answers(body=b"not json")
    with pytest.raises(UnexpectedAnswer):
        detect(peer.url, png)
    assert len(peer.seen) == 1


@pytest.mark.parametrize("settings", [{"deadline_s": 0}, {"deadline_s": -1.0}, {"retries": -1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Client("http://h", **settings)


@given(st.integers(1, 40), st.none() | st.floats(0, 60))
def test_the_wait_is_never_shorter_than_asked_and_the_jitter_is_bounded(attempt, asked_s):
    wait_s = backoff_s(attempt, asked_s)
    longest_s = 0.25
    for _ in range(attempt - 1):
        longest_s = min(2 * longest_s, LONGEST_WAIT_S)
    assert (asked_s or 0.0) <= wait_s <= (asked_s or 0.0) + longest_s


def test_jitter_is_full():
    waits_s = [backoff_s(3, None) for _ in range(400)]
    assert min(waits_s) < 0.1
    assert max(waits_s) > 0.9


def test_both_forms_of_retry_after_are_read():
    assert retry_after_s("7") == 7.0
    ahead = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28.0 < retry_after_s(ahead) <= 30.0
    assert retry_after_s("Sun, 06 Nov 1994 08:49:37 GMT") == 0.0
    assert retry_after_s("Sun, 06 Nov 1994 08:49:37 -0000") == 0.0


@given(st.none() | st.text(max_size=40))
def test_any_other_retry_after_is_as_if_it_were_missing(value):
    seconds = retry_after_s(value)
    assert seconds is None or seconds >= 0.0
