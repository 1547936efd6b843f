"""Percentiles, arrivals, figures and the search for a rate: each against plain loops."""

import asyncio
import itertools
import random
import statistics
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clq_client.bench.arrivals import constant, poisson, ramp_rates
from clq_client.bench.figures import Window, figures_of, percentile_of_all_ms, stages_ms
from clq_client.bench.loops import Sample
from clq_client.bench.percentiles import percentile
from clq_client.bench.slo import Goal, highest_rate


def percentile_by_loop(values, thousandths):
    """The smallest of the values that at least thousandths / 1000 of them do not exceed."""
    for value in sorted(values):
        at_most = 0
        for other in values:
            if other <= value:
                at_most += 1
        if at_most * 1000 >= thousandths * len(values):
            return value
    raise AssertionError("no value")


@settings(deadline=None)  # how long it takes is no matter
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.integers(1, 1000))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(values, thousandths):
    expected = percentile_by_loop(values, thousandths)
    assert percentile(sorted(values), thousandths / 10) == expected


def test_the_percent_is_taken_as_it_is_written():
    # 99.9 / 100 * 1000 is 999.0000000000001 in floating point, which would round up to 1000.
    assert percentile(range(1, 1001), 99.9) == 999
    assert percentile(range(1, 10_001), 99.99) == 9999


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 100.1)])
def test_a_percentile_that_there_is_not_is_refused(values, percent):
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, percent)


def test_poisson_arrivals_have_their_rate_their_seed_and_exponential_gaps():
    times = list(poisson(50, 200, seed=3))
    assert times == list(poisson(50, 200, seed=3)) != list(poisson(50, 200, seed=4))
    assert all(a < b for a, b in itertools.pairwise(times))
    assert times[0] > 0
    assert times[-1] < 200
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.05)  # as exponential gaps have


def test_constant_arrivals_are_equally_far_apart_and_ramps_have_both_ends():
    assert list(constant(4, 1)) == [0, 0.25, 0.5, 0.75]
    assert list(ramp_rates(5, 50, 4)) == [5, 20, 35, 50]
    assert list(ramp_rates(5, 50, 1)) == [5]


def test_stages_are_read_from_server_timing():
    header = b'decode;dur=3.5, queue;dur=0;desc="x", cache, infer ; dur=12.25,,total;dur=a'
    assert stages_ms(header) == {"decode": 3.5, "queue": 0.0, "infer": 12.25}
    assert stages_ms(b"") == {}


def random_samples(seed):
    generator = random.Random(seed)
    samples = []
    for _ in range(generator.randrange(1, 200)):
        due_s = generator.uniform(0, 4)
        sent_s = due_s + generator.choice([0, 0, generator.uniform(0, 0.3)])
        ended_s = sent_s + generator.expovariate(5)
        status, failure = generator.choice([(200, ""), (200, ""), (503, ""), (0, "timeout")])
        timing = b"infer;dur=2.0, total;dur=%.3f" % generator.uniform(0, 9)
        resent = generator.random() < 0.1
        samples.append(Sample(due_s, sent_s, ended_s, status, failure, timing, resent))
    return samples


@pytest.mark.parametrize("seed", range(20))
def test_figures_are_what_a_plain_loop_counts(seed):
    samples = random_samples(seed)
    found = figures_of(samples, Window(1, 3), within_ms=250)
    requests = good = done = in_time = 0
    latencies, outside, errors = [], [], {}
    for s in samples:
        latency_ms = 1000 * (s.ended_s - s.due_s)
        if 1 <= s.ended_s < 3 and s.status != 0:
            done += 1
            if s.status == 200 and latency_ms <= 250:
                in_time += 1
        if not 1 <= s.due_s < 3:
            continue
        requests += 1
        if s.status == 200:
            good += 1
            latencies.append(latency_ms)
            outside.append(latency_ms - float(s.server_timing.split(b"=")[-1]))
        else:
            name = "timeout" if s.status == 0 else "503"
            errors[name] = errors.get(name, 0) + 1
    assert (found.requests, found.good, found.errors) == (requests, good, errors)
    assert found.offered == requests / 2
    assert (found.throughput, found.goodput) == (done / 2, in_time / 2)
    if not latencies:
        assert (found.latency_ms, found.server_ms) == ({}, {})
        return
    for thousandths, name in ((500, "p50"), (900, "p90"), (990, "p99"), (999, "p99.9")):
        assert found.latency_ms[name] == percentile_by_loop(latencies, thousandths)
    assert found.latency_ms["max"] == max(latencies)
    assert found.server_ms["infer"] == {"mean": 2.0, "p50": 2.0, "p99": 2.0}
    assert found.server_ms["outside"]["p50"] == percentile_by_loop(outside, 500)


def test_a_request_without_a_good_answer_counts_as_endlessly_slow_for_a_goal():
    def sample(index, status):
        return Sample(index / 100, index / 100, index / 100 + 0.1, status, "", b"", False)

    samples = [sample(i, 503 if i % 10 == 9 else 200) for i in range(100)]
    assert percentile_of_all_ms(samples, Window(0, 1), 90) == pytest.approx(100)
    assert percentile_of_all_ms(samples, Window(0, 1), 91) == inf
    assert percentile_of_all_ms([], Window(0, 1), 50) == inf


@pytest.mark.parametrize(
    ("text", "goal"),
    [("p99=200ms", Goal(99, 200)), ("p99.9=1.5s", Goal(99.9, 1500)), (" p50=80ms", Goal(50, 80))],
)
def test_goals_are_read(text, goal):
    assert Goal.parse(text) == goal


@pytest.mark.parametrize("text", ["", "99=200ms", "p99=200", "p0=1s", "p101=1s", "p99=0ms"])
def test_what_is_no_goal_is_refused(text):
    with pytest.raises(ValueError, match=r"accepted: e\.g\. p99=200ms"):
        Goal.parse(text)


def search(capacity, first, confirmed=inf, highest=1000.0):
    """(the rate found for a service that holds rates up to `capacity`, the rates tried)."""
    tried = []

    async def holds(rate):
        tried.append(rate)
        return rate <= capacity

    async def confirms(rate):
        return rate <= min(capacity, confirmed)

    found = highest_rate(holds, confirms, first=first, lowest=0.1, highest=highest)
    return asyncio.run(found), tried


@settings(deadline=None)  # how long it takes is no matter
@given(st.floats(0.1, 900), st.floats(0.1, 1000))
def test_the_highest_rate_is_found_within_its_precision(capacity, first):
    rate, tried = search(capacity, first)
    assert capacity / 1.0500001 <= rate <= capacity
    assert len(tried) < 25


@settings(deadline=None)  # how long it takes is no matter
@given(st.floats(0.1, 900), st.floats(0.1, 900), st.floats(0.1, 1000))
def test_a_rate_that_is_not_confirmed_is_lowered_until_one_is(capacity, confirmed, first):
    rate, _ = search(capacity, first, confirmed)
    assert min(capacity, confirmed) / (1.2 * 1.0500001) <= rate <= min(capacity, confirmed)


def test_the_search_ends_at_the_highest_rate_it_may_try_and_where_nothing_holds():
    assert search(5000, 100)[0] == 1000
    assert search(0.05, 100)[0] is None
    assert search(50, 100, confirmed=0.05)[0] is None
