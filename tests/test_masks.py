"""Counting of query-key pairs against masks written out, entry by entry."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from costmodel.expression import Expression, symbol_named
from costmodel.masks import Mask


def written_out(mask: Mask, n_q: int, n_k: int) -> NDArray[np.bool_]:
    """Which pairs [n_q, n_k] are left: query i stands at key position n_k - ahead - n_q + i."""
    left = np.zeros((n_q, n_k), bool)
    for i in range(n_q):
        for j in range(n_k):
            ahead = (j + 1) * mask.stride - 1 - (n_k * mask.stride - mask.ahead - n_q + i)
            in_window = mask.window is None or -mask.window < ahead < mask.window
            left[i, j] = in_window and (ahead <= 0 or not mask.causal)
    return left


@st.composite
def masks(draw: st.DrawFn) -> tuple[Mask, int, int]:
    """A mask, queries, and at least as many keys; some of them ahead of the queries if the window is on both sides.

    Or keys that stand for several tokens each.
    """
    if draw(st.booleans()):
        stride, pieces = draw(st.integers(2, 5)), draw(st.integers(1, 5))
        return Mask(causal=True, stride=stride), stride * pieces, pieces + draw(st.integers(0, 5))
    causal, window = draw(st.booleans()), draw(st.none() | st.integers(1, 14))
    n_q, before = draw(st.integers(1, 12)), draw(st.integers(0, 12))
    ahead = 0 if causal or window is None else draw(st.integers(0, window - 1))
    return Mask(causal, window, ahead), n_q, before + n_q + ahead


@settings(max_examples=300)
@given(masks())
def test_useful_pairs(drawn: tuple[Mask, int, int]) -> None:
    mask, n_q, n_k = drawn
    assert mask.useful_pairs(n_q, n_k) == written_out(mask, n_q, n_k).sum()


@settings(max_examples=300)
@given(masks(), st.integers(1, 7))
def test_executed_pairs_are_whole_tiles_with_a_useful_pair(drawn: tuple[Mask, int, int], tile: int) -> None:
    mask, n_q, n_k = drawn
    left = written_out(mask, n_q, n_k)
    tiles = sum(bool(left[i : i + tile, j : j + tile].any()) for i in range(0, n_q, tile) for j in range(0, n_k, tile))
    assert mask.executed_pairs(n_q, n_k, tile) == tiles * tile**2


@settings(max_examples=100)
@given(masks(), st.integers(1, 7))
def test_formulas_of_symbols_have_the_same_values(drawn: tuple[Mask, int, int], tile: int) -> None:
    mask, n_q, n_k = drawn
    q, k, w, a, t, s = (symbol_named(name) for name in ("n_q", "n_k", "w", "a", "t", "s"))
    values = {"n_q": n_q, "n_k": n_k, "w": mask.window or 1, "a": mask.ahead, "t": tile, "s": mask.stride}
    strided = mask.stride > 1
    symbolic = Mask(mask.causal, None if mask.window is None else w, a if mask.ahead else 0, s if strided else 1)
    for formula, number in (
        (symbolic.useful_pairs(q, k), mask.useful_pairs(n_q, n_k)),
        (symbolic.executed_pairs(q, k, t), mask.executed_pairs(n_q, n_k, tile)),
    ):
        assert isinstance(formula, Expression)
        assert formula.evaluate(values) == number


@given(masks())
def test_a_tile_of_one_pair_wastes_nothing(drawn: tuple[Mask, int, int]) -> None:
    mask, n_q, n_k = drawn
    assert mask.executed_pairs(n_q, n_k, 1) == mask.useful_pairs(n_q, n_k)
