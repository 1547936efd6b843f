"""What a report warns of, and that its plots are where the values are."""

from dataclasses import replace

import pytest

from clq_client.bench.figures import Window, figures_of
from clq_client.bench.loops import Sample
from clq_client.bench.measure import Arrivals, Measured, Plan
from clq_client.bench.plot import plot_html
from clq_client.bench.report import Report
from clq_client.bench.svg import log_y_axis, x_axis, y_axis

PLAN = Plan(0, 1, Arrivals.POISSON, 0, None)


def measured(rate=10.0, slow_ms=100, status=200):
    window = Window(0, 1)
    times = [index / rate for index in range(int(rate))]
    samples = [Sample(t, t, t + slow_ms / 1000, status, "", b"", False) for t in times]
    figures = figures_of(samples, window)
    return Measured(rate, None, window, samples, figures, None, 0.5, 0.1)


def warnings(run, ceiling=1000.0):
    return Report("http://x", 1, 1000, PLAN, ceiling, [run], run).warnings()


def test_a_run_with_enough_answers_and_an_idle_generator_has_no_warning():
    assert warnings(measured(rate=400.0, slow_ms=1)) == ["p99.9 of 400 answers are their maximum"]
    assert warnings(measured(rate=1000.0, slow_ms=1), ceiling=None) == []


def test_a_generator_that_is_saturated_or_starved_is_said():
    run = measured(rate=1000.0, slow_ms=1)
    (told,) = warnings(replace(run, cpu_share=0.95), None)
    assert "the generator was saturated, it used 95 % of a core" in told
    (told,) = warnings(replace(run, lag_p99_ms=12), None)
    assert "its event loop was late by 12 ms" in told
    (told,) = warnings(run, ceiling=1500.0)
    assert "are more than 50 % of what the generator can send" in told
    slow = measured(rate=1000.0, slow_ms=20)
    assert warnings(replace(slow, lag_p99_ms=12), None)  # more than 5 % of 20 ms
    assert "event loop" not in str(warnings(replace(measured(slow_ms=900), lag_p99_ms=12)))


def test_a_service_that_does_not_keep_up_is_said():
    told = warnings(measured(rate=400.0, slow_ms=500), None)
    assert "the service did not keep up" in told[0]


def test_a_page_of_a_run_without_a_good_answer_has_no_plot_of_it():
    run = measured(status=503)
    page = plot_html(Report("http://x/<b>", 1, 1000, PLAN, None, [run], run))
    assert "<svg" not in page
    assert "10 x 503" in page
    assert "http://x/&lt;b&gt;" in page


@pytest.mark.parametrize("high", [0.0, 0.3, 1, 7, 99, 100, 101, 12345.6])
def test_axes_begin_at_zero_and_end_on_a_tick_that_is_not_below_the_values(high):
    axis = y_axis("ms", high)
    assert axis.ticks[0][0] == 0
    assert axis.ticks[-1][0] == axis.high >= high
    assert 3 <= len(axis.ticks) <= 8
    assert axis.px(0) > axis.px(axis.high)  # upwards on the screen
    assert x_axis("s", 0, high).px(0) == 64


@pytest.mark.parametrize(("low", "high"), [(1, 1), (0.3, 4000), (55, 56), (9, 11), (1e-3, 1e6)])
def test_a_logarithmic_axis_holds_all_values_between_round_ends(low, high):
    axis = log_y_axis("ms", low, high)
    assert axis.low <= low <= high <= axis.high
    assert axis.low < axis.high
    assert 1 <= len(axis.ticks) <= 10
    middle = (axis.low * axis.high) ** 0.5
    assert axis.px(middle) == pytest.approx((axis.begin_px + axis.end_px) / 2)
