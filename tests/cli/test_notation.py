"""Formulas as people write them."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.dims import ceil_div, doublings, exp2, maximum, minimum
from costmodel.expression import Expression, lift
from costmodel.notation import as_latex, as_python, as_text
from costmodel.symbols import symbol

NAMES = ("B", "L", "H_kv", "P_c", "t")
SYMBOLS = [symbol(name) for name in NAMES]


def combine(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        pairs.map(lambda p: p[0] + p[1]),
        pairs.map(lambda p: p[0] - p[1]),
        pairs.map(lambda p: p[0] * p[1]),
        pairs.map(lambda p: lift(maximum(*p))),
        pairs.map(lambda p: lift(minimum(*p))),
        st.tuples(inner, st.sampled_from(SYMBOLS)).map(lambda p: p[0] / p[1]),
        st.tuples(inner, st.sampled_from(SYMBOLS)).map(lambda p: lift(ceil_div(*p))),
        st.tuples(inner, st.integers(-3, 3)).map(lambda p: p[0] * Fraction(p[1], 2)),
    )


expressions = st.recursive(st.sampled_from(SYMBOLS) | st.integers(-3, 3).map(lift), combine, max_leaves=12)


@given(value=expressions, numbers=st.tuples(*[st.integers(1, 30)] * len(NAMES)))
@settings(max_examples=200)
def test_what_is_written_is_what_was_meant(value: Expression, numbers: tuple[int, ...]) -> None:
    values = {name: Fraction(number) for name, number in zip(NAMES, numbers, strict=True)}
    written = as_python(value)
    assert eval(written, {"ceil": ceil, "max": max, "min": min}, values) == value.evaluate(values)
    latex = as_latex(value)
    assert latex.count("{") == latex.count("}")
    assert as_text(value)


B, L, H_kv, P_c, T = SYMBOLS


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4 * B * L * L / P_c, "4·B·L²/P_c"),
        (B * L + B * H_kv, "B·(L + H_kv)"),
        (2 * B * H_kv * (P_c - 1) / P_c, "2·B·H_kv·(P_c - 1)/P_c"),
        (L / 2 + lift(Fraction(1, 3)), "(3·L + 2)/6"),
        (lift(ceil_div(L, T)) * T, "t·⌈L/t⌉"),
        (exp2(doublings(L)) * L, "L·2^(⌈log2(L)⌉)"),
        (exp2(doublings(L)) ** 2, "(2^(⌈log2(L)⌉))²"),
        (lift(maximum(B * L, 2 * B)), "B·max(L, 2)"),
        (lift(maximum(B, 0)), "B"),
        (lift(minimum(B, 0)) + 1, "1"),
        (lift(maximum(B * L - L, 0)), "L·(B - 1)"),
        (lift(maximum(maximum(B, L), B * L)) - 1, "B·L - 1"),
        (lift(maximum(L - 2, 0)), "max(L - 2, 0)"),
        (lift(maximum(symbol("rank_c") - 1, 0)), "max(rank_c - 1, 0)"),
        (lift(ceil_div(B * L, 1)), "B·L"),
        (P_c * (B + L) - B - L, "(B + L)·(P_c - 1)"),
        (2 * T * (P_c * (B + 3 * L) - 2 * B - 6 * L), "2·t·(B + 3·L)·(P_c - 2)"),
        (-L - B, "-(B + L)"),
        (1 / (P_c * T), "1/(P_c·t)"),
        (L ** Fraction(1, 2), "L^(1/2)"),
        (lift(0), "0"),
    ],
)
def test_text(value: Expression, text: str) -> None:
    assert as_text(value) == text


def test_latex() -> None:
    assert as_latex(2 * B * H_kv * L**2 / P_c) == r"\frac{2 \, B \, {L}^{2} \, H_{kv}}{P_{c}}"
    assert as_latex(symbol("rank_c") + 1) == r"\mathrm{rank}_{c} + 1"
