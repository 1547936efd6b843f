"""How many images are on the way at once, and when a service counts as gone."""

import asyncio
import time

import pytest

from clq_client import AsyncClient, ConnectionFailed, Overloaded, ServerFault
from clq_client.pace import FIRST_LIMIT, Pace, ServiceGone
from clq_client.run import MOST_ATTEMPTS, Job, Options, detect_all


def test_what_goes_well_adds_one_a_round_up_to_the_most():
    pace = Pace(8, 60)
    assert pace.limit == FIRST_LIMIT
    for _ in range(4):
        pace.answered()
    assert 4.8 < pace.limit <= 5
    for _ in range(1000):
        pace.answered()
    assert pace.limit == 8


def test_a_refusal_halves_it_once_for_all_that_was_on_the_way():
    pace = Pace(64, 60)
    pace.limit = 40.0
    sent_s = time.monotonic()
    for _ in range(20):
        pace.failed(Overloaded("full", status=503), sent_s)
    assert pace.limit == 20.0
    pace.failed(Overloaded("full", status=429), time.monotonic())
    assert pace.limit == 10.0
    for _ in range(30):
        pace.failed(Overloaded("full", status=503), time.monotonic())
    assert pace.limit == 1.0


def test_single_cuts_slow_nothing_down_and_many_in_a_row_leave_one_that_asks():
    pace = Pace(64, 60)
    pace.limit = 8.0
    for _ in range(50):
        pace.failed(ConnectionFailed("cut"), time.monotonic())
        pace.answered()
    assert pace.limit > 8.0
    for _ in range(100):
        wait_s = pace.failed(ConnectionFailed("cut"), time.monotonic())
        assert 0 <= wait_s <= 8.0
    assert pace.limit == 1.0


def test_the_number_that_was_refused_is_tried_again_only_now_and_then():
    pace = Pace(64, 60)
    refusals = 0
    for _ in range(1000):
        if pace.limit >= 3:  # a service that takes two
            pace.failed(Overloaded("full", status=503, code="overloaded"), time.monotonic())
            refusals += 1
        else:
            pace.answered()
    assert 1 < refusals < 50
    assert pace.limit < 3
    for _ in range(1000):  # now it takes all
        pace.answered()
    assert pace.limit > 20


def test_a_full_service_holds_back_the_image_that_it_refused_and_no_other():
    async def measure():
        pace = Pace(4, 60)
        error = Overloaded("full", status=503, code="overloaded", retry_after_s=5)
        assert 5 <= pace.failed(error, time.monotonic()) <= 6
        async with asyncio.timeout(2), pace:
            pass

    asyncio.run(measure())


def test_retry_after_of_another_kind_holds_back_every_image():
    async def measure():
        pace = Pace(4, 60)
        error = Overloaded("slower", status=429, code="rate", retry_after_s=0.5)
        pace.failed(error, time.monotonic())
        start_s = time.monotonic()
        async with pace:
            return time.monotonic() - start_s

    assert 0.45 < asyncio.run(measure()) < 5


def test_no_more_slots_are_given_than_the_limit():
    async def count():
        pace = Pace(3, 60)
        now, most = 0, 0

        async def work():
            nonlocal now, most
            async with pace:
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.001)
                now -= 1
            pace.answered()

        await asyncio.gather(*(work() for _ in range(50)))
        return most

    assert asyncio.run(count()) == 3


def test_a_service_counts_as_gone_when_the_patience_ends():
    pace = Pace(4, 0.05)
    pace.failed(ConnectionFailed("refused"), time.monotonic())
    time.sleep(0.06)
    with pytest.raises(ServiceGone, match=r"no result for 0\.05 s; the last reason: refused"):
        pace.failed(ConnectionFailed("refused"), time.monotonic())


def outcomes_of(url, sources, most=4):
    async def send():
        async def jobs():
            for number, source in enumerate(sources):
                yield Job(str(number), source)

        found = {}

        async def put(outcome):
            found[int(outcome.job.key)] = outcome

        async with AsyncClient(url, retries=0) as client:
            await detect_all(client, jobs(), Options(), Pace(most, 60), most, put)
        return [found[number] for number in range(len(sources))]

    return asyncio.run(send())


@pytest.mark.parametrize("how", [{"cut": "before"}, {"status": 502, "body": b""}])
def test_an_image_that_always_breaks_the_service_fails_and_no_other_does(
    peer, png_of, monkeypatch, how
):
    monkeypatch.setattr("clq_client.retry.LONGEST_WAIT_S", 0.02)
    images = [png_of(10 + i, 20, 0) for i in range(6)]
    peer.refused[images[2]] = type(peer.problem_step(400))(**how)
    found = outcomes_of(peer.url, images)
    assert [outcome.failure is None for outcome in found] == [i != 2 for i in range(6)]
    kind = ConnectionFailed if "cut" in how else ServerFault
    assert found[2].failure.error["type"] == kind.__name__
    assert len([seen for seen in peer.detects if seen.body == images[2]]) == MOST_ATTEMPTS


def test_refusals_for_load_never_fail_an_image(peer, png_of, monkeypatch):
    monkeypatch.setattr("clq_client.retry.LONGEST_WAIT_S", 0.02)
    images = [png_of(10 + i, 20, 0) for i in range(4)]
    peer.detect_steps = [peer.problem_step(429, "rate")] * 60
    assert all(outcome.failure is None for outcome in outcomes_of(peer.url, images))
    assert len(peer.detects) == 64
