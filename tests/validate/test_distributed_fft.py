"""Long convolutions by a distributed Fourier transform: what is sent, by hand, and that no length is special."""

from __future__ import annotations

import pytest

from costmodel.strategy import strategies
from costmodel.subject import from_mixer
from tests.validate.cases import Case, check_case, expected
from validate.launch import RankPool


def test_bytes_by_hand() -> None:
    # Of 16 tokens in 4 channels, a rank sends 3/4 in each exchange: 48 numbers. Two exchanges are of values (2 bytes),
    # two of complex partial spectra (8 bytes), and one of those of the filters, whatever the batch.
    (layer,) = from_mixer("s4d", 4, pairs=3).layers
    strategy = strategies.get("distributed-fft")
    case = Case(layer, strategy, {"context": 4}, 64, kernel="fft", phase="forward", dtype="bf16")
    assert expected(case).sent(0)["context"].bytes == 48 * (2 * 2 + 2 * 8 + 8)


@pytest.mark.parametrize(("ranks", "length"), [(2, 12), (3, 63), (4, 16), (4, 80)])
def test_lengths_that_are_no_power_of_two(pool: RankPool, ranks: int, length: int) -> None:
    (layer,) = from_mixer("s4d", 3, pairs=2).layers
    strategy = strategies.get("distributed-fft")
    check_case(pool, Case(layer, strategy, {"context": ranks}, length, kernel="fft", dtype="fp32"))
