"""Collectives are timed on real ranks, the slowest of which counts."""

from __future__ import annotations

import pytest

from calibrate.cases import COLLECTIVES, ONE_WAY
from calibrate.collectives import BYTES, FEWEST, MANY, MOST, Ranks
from validate.launch import RankPool


@pytest.mark.slow
def test_every_collective_and_its_overlap_are_timed() -> None:
    with RankPool(2) as pool:
        ranks = Ranks(pool)
        for kernel in (*COLLECTIVES, *ONE_WAY):
            found = ranks.timed(kernel, 4096, 0.02)
            assert FEWEST <= len(found.samples) <= MOST
            assert found.calls == MANY // 4096
            assert 0 < found.seconds < 10
        assert all(seconds > 0 for seconds in ranks.beside(2**16, 0.1))


def test_all_collectives_come_at_one_size_before_the_next() -> None:
    messages = list(Ranks(RankPool(2)).messages())
    kernels = (*COLLECTIVES, *ONE_WAY)
    assert messages[: len(kernels)] == [(kernel, 2**10) for kernel in kernels]
    assert len(messages) == len(set(messages)) == len(BYTES) * len(kernels)
    assert (min(BYTES), max(BYTES)) == (2**10, 2**28)
