"""The uncertainty of whole runs that their kernels do not tell."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.composition import Missed, ends, held_out


def runs(source: str, *by: float, own: float = 0.3) -> list[Missed]:
    return [Missed(source, each, own, own) for each in by]


def test_nothing_is_added_where_the_profile_says_enough() -> None:
    assert ends(runs("a", 0.3, -0.3, 0.1)) == (1.0, 1.0)


def test_ends_are_the_least_that_leave_out_one_run_in_twenty() -> None:
    # Of 20 runs one may be slower than the end: the second slowest decides, sqrt(0.5^2 - 0.3^2) = 0.4 beyond its own.
    found = ends(runs("a", 0.9, 0.5, *[0.0] * 18))
    assert found == pytest.approx((1.0, np.exp(0.4)))
    assert [run.inside(found) for run in runs("a", 0.9, 0.5 - 1e-9, -0.3)] == [False, True, True]


def test_sources_weigh_alike() -> None:
    # The one run of b is half of all, however many a has; those of a need nothing.
    assert ends([*runs("a", *[0.0] * 99), *runs("b", -0.5)]) == pytest.approx((np.exp(-0.4), 1.0))


def test_a_source_is_judged_by_the_others() -> None:
    found = held_out([*runs("a", 0.5, 0.5), *runs("b", 0.0, 0.6)])
    assert found["a"] == (pytest.approx((1.0, np.exp(np.sqrt(0.6**2 - 0.3**2)))), 2, 2)
    assert found["b"] == (pytest.approx((1.0, np.exp(0.4))), 1, 2)
