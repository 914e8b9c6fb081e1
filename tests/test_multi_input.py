"""Mamba-3 with several keys, queries and values a token: more work on the same state."""

from __future__ import annotations

from fractions import Fraction

import pytest

from costmodel.arrangement import Way
from costmodel.formulas import layer_formulas
from costmodel.strategies.whole import whole
from costmodel.workload import Workload

B, D, H, E, TURNING, OTHERS = 3, 10, 2, 400, 80, 60
SIZES = {"B": B, "P_d": 1, "D": D, "H": H, "e": E, "d_n": OTHERS, "d_r": TURNING, "s": 2, "a": 4, "T": 100}


def decoding(rank: int) -> dict[tuple[str, str], Fraction]:
    """FLOPs and bytes of one token."""
    way, task = Way(whole, "chunked", False), Workload(100, 1, "decode", True)
    found = layer_formulas("mamba3", way, task, {"mimo_rank": rank}).formulas
    return {(one.part, one.name): one.value.evaluate(SIZES) for one in found}


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_flops_on_the_state_grow_with_the_rank(rank: int) -> None:
    """Three products of 2 d e FLOP a head and key; 2 D for each column of weights, x, z and output among them."""
    d = TURNING + OTHERS
    columns = 3 * H * E + 2 * rank * d + TURNING // 2 + 3 * H
    assert decoding(rank)["flop", "contraction"] == B * (2 * D * columns + 6 * H * rank * d * E)


def test_bytes_do_not_grow_with_the_rank() -> None:
    """FLOPs for a byte of traffic: nearly four times as many, with states much larger than keys and values."""
    one, four = (
        found["flop", "contraction"] / (found["traffic", "read"] + found["traffic", "written"])
        for found in (decoding(1), decoding(4))
    )
    assert 3 < four / one < 4
