"""What overlap costs, from pairs that were measured alone and together."""

from __future__ import annotations

import pytest

from calibrate.overlap import contention, overlap_numbers
from calibrate.profile_file import Changes, profile_text, read, rewritten
from calibrate.store import Beside, Contents
from costmodel.timing import Times
from tests.calibrate.test_store import ENVIRONMENT


def pair(communication: float, computation: float, both: float, what: str = "all_reduce", size: int = 2**20) -> Beside:
    return Beside("a1", 1.0, what, size, communication, computation, both)


@pytest.mark.parametrize(
    ("communication", "computation", "both", "expected"),
    [
        (1.0, 1.0, 1.0, 0.0),  # all of it is hidden
        (1.0, 2.0, 2.6, 0.6),  # 0.6 s longer than the computation alone
        (2.0, 1.0, 2.5, 0.75),  # the computation takes all of 2.5 s
        (1.0, 1.0, 2.3, 1.0),  # longer than one after the other
        (2.0, 1.0, 2.0, None),  # somewhere between 0 and a half
        (1.0, 1.0, 0.9, 0.0),
    ],
)
def test_a_pair_tells_how_long_communication_delays_computation(
    communication: float, computation: float, both: float, expected: float | None
) -> None:
    found = contention(pair(communication, computation, both))
    assert found == (None if expected is None else pytest.approx(expected))


def test_what_a_pair_tells_is_what_the_formula_takes() -> None:
    made = pair(3.0, 2.0, 4.4)
    delay = contention(made)
    assert delay is not None
    together = Times(2.0, 2.0, 0.0).beside(Times(3.0, 0.0, 3.0, 3.0 * delay))
    assert float(together.total) == pytest.approx(made.both_s)


def test_a_profile_gets_the_median_and_nine_in_ten() -> None:
    parts = [0.2 + 0.01 * n for n in range(41)]  # 0.2 to 0.6
    pairs = tuple(pair(1.0, 2.0, 2.0 + part, f"kind {n % 3}") for n, part in enumerate(parts))
    found = overlap_numbers(Contents({"a1": ENVIRONMENT}, overlaps=pairs))
    profile = read(rewritten(profile_text("cpu")[0], Changes(found, ())), "mine")
    delay = profile.links[0].contention
    assert delay is not None
    assert (delay.lo, delay.value, delay.hi) == pytest.approx((0.22, 0.4, 0.58))
    assert (delay.kind, profile.links[1].contention) == ("measured", None)
    assert "41 messages of 3 kinds" in delay.source


def test_nothing_is_said_without_pairs_that_tell() -> None:
    assert overlap_numbers(Contents({"a1": ENVIRONMENT})) == {}
    assert overlap_numbers(Contents({"a1": ENVIRONMENT}, overlaps=(pair(2.0, 1.0, 2.0),))) == {}
