"""Copies between device and host become the rate that offloading is predicted with, launches a step's least time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from calibrate.host import BYTES, host_copies, host_numbers, paths
from calibrate.method import Timing
from calibrate.profile_file import Changes, profile_text, read, rewritten
from calibrate.store import Contents, Copied, Launched
from tests.calibrate.test_store import ENVIRONMENT

#: Seconds of a copy that moves nothing, and bytes in a second.
TRUTH = {
    ("to the device", True): (9e-6, 25e9),
    ("from the device", True): (8e-6, 27e9),
    ("both ways", True): (11e-6, 12e9),
    ("to the device", False): (15e-6, 6e9),
    ("from the device", False): (14e-6, 3e9),
}


def copies(ways: set[str]) -> Iterator[Copied]:
    random = np.random.default_rng(0)
    for copy in host_copies():
        start, rate = TRUTH[copy.way, copy.pinned]
        seconds = (start + copy.bytes / rate) * float(np.exp(random.normal(0, 0.03)))
        if copy.way in ways:
            timing = Timing(seconds, 0.01, (seconds,), (), (), 1)
            yield Copied("a1", 1.0, copy.way, copy.pinned, copy.bytes, timing)


def contents(ways: set[str]) -> Contents:
    return Contents({"a1": ENVIRONMENT}, copies=tuple(copies(ways)))


EVERY = {way for way, _ in TRUTH}


def test_every_way_comes_at_one_size_before_the_next() -> None:
    each = list(host_copies())
    assert [(copy.way, copy.pinned, copy.bytes) for copy in each] == [
        (way, pinned, size) for size in BYTES for way, pinned in dict.fromkeys((c.way, c.pinned) for c in each)
    ]
    assert {(copy.way, copy.pinned) for copy in each} == set(TRUTH)
    assert (min(BYTES), max(BYTES)) == (2**10, 2**28)


def test_starts_and_rates_are_found_again() -> None:
    for path in paths(list(copies(EVERY))):
        start, rate = TRUTH[path.way, path.pinned]
        assert path.start_s == pytest.approx(start, rel=0.06)
        assert path.bytes_per_s == pytest.approx(rate, rel=0.04)
        assert path.error < 0.05


def test_the_profile_has_pinned_memorys_rate_there_and_back() -> None:
    found = host_numbers(contents(EVERY))
    profile = read(rewritten(profile_text("rtx4090")[0], Changes(found, ())), "mine")
    rate = profile.host.bytes_per_s
    assert rate.value == pytest.approx(2 / (1 / 25e9 + 1 / 27e9), rel=0.03)
    assert rate.lo == pytest.approx(12e9, rel=0.03)  # while the other way is in use as well
    assert rate.hi == pytest.approx(27e9, rel=0.03)
    assert rate.kind == "measured"


def test_pageable_memory_says_nothing_of_offloading() -> None:
    pageable = tuple(copy for copy in copies(EVERY) if not copy.pinned)
    assert host_numbers(Contents({"a1": ENVIRONMENT}, copies=pageable)) == {}
    assert host_numbers(contents(set())) == {}
    assert paths([next(copies(EVERY))]) == []  # of one size


def test_launches_are_the_median_with_its_range() -> None:
    samples = tuple(1e-6 * (5 + 0.1 * n) for n in range(11))  # 5 to 6 us
    launched = Launched("a1", 1.0, Timing(5.5e-6, 0.02, samples, (), (), 80))
    found = host_numbers(Contents({"a1": ENVIRONMENT}, launches=(launched,)))
    profile = read(rewritten(profile_text("h100")[0], Changes(found, ())), "mine")
    launch = profile.device.host_launch_s
    assert launch is not None
    assert (launch.lo, launch.value, launch.hi) == pytest.approx((5.05e-6, 5.5e-6, 5.95e-6))
