"""The way of timing, by clocks that are made up."""

from __future__ import annotations

import math
import random

import pytest

from calibrate.method import (
    FEWEST,
    MOST,
    NARROW,
    Clock,
    Drift,
    Sample,
    ThreadClock,
    Timing,
    half_width,
    measure,
    rotating,
)


class Scripted(Clock):
    """Time passes only when work is done, and as much as is said."""

    name = "scripted"

    def __init__(self, seconds: float, noise: float = 0.0, stolen: float = 0.0) -> None:
        self.seconds, self.noise, self.stolen = seconds, noise, stolen
        self.time, self.calls, self.random = 0.0, 0, random.Random(0)

    def sample(self, work, calls: int) -> Sample:
        for _ in range(calls):
            work()
        found = self.seconds * (1 + self.random.uniform(-self.noise, self.noise))
        disturbed = self.random.random() < self.stolen
        self.time += found * calls * (10 if disturbed else 1)
        self.calls += calls
        return Sample(found * (10 if disturbed else 1), disturbed)

    def now(self) -> float:
        return self.time


def nothing() -> None:
    pass


def test_steady_work_needs_few_samples() -> None:
    clock = Scripted(1e-3)
    found = measure(nothing, clock, 1.0)
    assert (found.seconds, found.half_width, found.calls) == (1e-3, 0.0, 1)
    assert len(found.samples) == FEWEST
    assert found.disturbed == found.outliers == ()


def test_short_work_is_called_many_times_for_one_sample() -> None:
    found = measure(nothing, Scripted(1e-6), 1.0)
    assert found.calls in (400, 401)  # 0.4 ms a sample
    assert found.seconds == pytest.approx(1e-6)


def test_noisy_work_is_repeated_until_the_median_is_known_or_the_time_is_up() -> None:
    clock = Scripted(1e-3, noise=0.05)
    clock.slowed = False
    known = measure(nothing, clock, 10.0)
    assert FEWEST < len(known.samples) < MOST
    assert known.half_width is not None and known.half_width <= NARROW
    clock = Scripted(1e-3, noise=0.9)
    stopped = measure(nothing, clock, 0.1)
    assert stopped.half_width is not None and stopped.half_width > NARROW
    assert 0.1 <= clock.time <= 0.105


def test_on_a_slowed_device_a_fastest_time_that_was_reached_several_times_is_enough() -> None:
    clock = Scripted(1e-3, noise=0.05)
    found = measure(nothing, clock, 10.0)
    near = [seconds for seconds in found.samples if seconds <= (1 + NARROW) * min(found.samples)]
    assert len(near) == FEWEST < len(found.samples) < MOST
    assert min(found.samples) == pytest.approx(0.95e-3, rel=0.01)


def test_work_longer_than_its_time_is_timed_once_after_a_call_that_is_thrown_away() -> None:
    clock = Scripted(2.0)
    found = measure(nothing, clock, 1.0)
    assert (clock.calls, len(found.samples), found.half_width) == (2, 1, None)


def test_disturbed_samples_are_kept_and_marked_and_do_not_move_the_median() -> None:
    found = measure(nothing, Scripted(1e-3, noise=0.05, stolen=0.4), 1.0)
    assert found.seconds == pytest.approx(1e-3, rel=0.02)
    assert found.disturbed
    assert all(found.samples[place] > 5e-3 for place in found.disturbed)
    assert set(found.disturbed) <= set(found.outliers)


def test_half_width_by_hand() -> None:
    # Of 10 samples the median is between the 2nd and the 9th: P(fewer than 2 heads of 10) = 11/1024 < 2.5 %,
    # while P(fewer than 3) = 56/1024 is more.
    ordered = [0.8, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.2, 9.0]
    assert half_width(ordered) == pytest.approx((1.2 - 0.9) / 2)


def test_the_interval_of_the_median_holds_it_as_often_as_it_says() -> None:
    draw, inside, rounds = random.Random(1), 0, 2000
    for _ in range(rounds):
        values = sorted(draw.expovariate(1.0) for _ in range(15))
        inside += values[3] <= math.log(2) <= values[11]  # the ranks of half_width for 15: P(fewer than 4) = 1.8 %
        assert half_width(values) == pytest.approx((values[11] - values[3]) / 2 / values[7])
    assert 0.95 <= inside / rounds <= 0.98


def test_operands_are_taken_in_turn() -> None:
    seen: list[int] = []
    work = rotating(seen.append, [(1,), (2,), (3,)])
    for _ in range(5):
        work()
    assert seen == [1, 2, 3, 1, 2]


def test_drift_is_told_against_the_first_timing() -> None:
    clock = Scripted(1e-3)
    drift = Drift(nothing, clock, every_s=1.0)
    assert drift.due()
    drift.check()
    assert not drift.due()
    clock.time += 1.01
    assert drift.due()
    clock.seconds = 1.2e-3
    drift.check()
    assert drift.ratios == [1.0, pytest.approx(1.2)]


def test_the_clock_of_a_thread_counts_what_it_computes() -> None:
    sample = ThreadClock().sample(lambda: sum(range(20000)), 3)
    assert 1e-6 < sample.seconds < 1.0


def test_a_median_of_few_quiet_samples_is_of_all() -> None:
    samples = [Sample(1.0)] + [Sample(3.0, disturbed=True)] * 6
    assert Timing.of(samples, 1).seconds == 3.0
