"""The base-2 logarithm of formulas, which costs of transforms and sorts are made of."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from costmodel.compiled import Compiled
from costmodel.dims import log2, maximum
from costmodel.notation import as_latex, as_python, as_text, simplified
from costmodel.symbols import symbol, sympy_symbol

L, P = symbol("L"), symbol("P")
COST = 5 * L * log2(2 * L / P)


@given(st.integers(-200, 200), st.integers(1, 9))
def test_exact_for_powers_of_two(power: int, other: int) -> None:
    value = Fraction(2) ** power
    assert log2(value) == power
    assert isinstance(log2(value), int)
    assert log2(L / P).evaluate({"L": value * other, "P": other}) == power


@given(st.integers(1, 10**9))
def test_rounded_otherwise(size: int) -> None:
    assert log2(size) == pytest.approx(math.log2(size), rel=1e-15)


@pytest.mark.parametrize("value", [0, -1, Fraction(-1, 2)])
def test_only_of_positive_numbers(value: Fraction) -> None:
    with pytest.raises(ValueError, match=r"domain|positive"):
        log2(value)


@given(st.integers(1, 10**6), st.integers(1, 64))
def test_all_readings_agree(length: int, ranks: int) -> None:
    expected = 5 * length * math.log2(2 * length / ranks)
    values = {"L": length, "P": ranks}
    limit = pytest.approx(expected, rel=1e-12, abs=1e-9)
    assert float(COST.evaluate(values)) == limit
    assert COST.approximate(values) == limit
    assert Compiled({"cost": COST})({"L": np.array([float(length)]), "P": float(ranks)})["cost"][0] == limit
    shown = COST.sympy().subs({sympy_symbol(name): sympy.Integer(value) for name, value in values.items()})
    assert float(shown) == limit
    assert eval(as_python(COST), {"log2": math.log2}, values) == limit


def test_written() -> None:
    assert as_text(5 * L * log2(2 * L)) == "5·L·log2(2·L)"
    assert as_latex(L * log2(L)) == r"L \, \log_2\left(L\right)"


def test_a_size_of_one_or_more_has_no_negative_logarithm() -> None:
    assert simplified(maximum(log2(L), 0)) == log2(L)
    assert simplified(maximum(log2(L / P), 0)) == maximum(log2(L / P), 0)
