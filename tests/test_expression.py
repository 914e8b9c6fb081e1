"""Exact formulas against Python's own exact arithmetic, and compiled ones against exact ones."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from costmodel.compiled import CHUNK, Compiled
from costmodel.dims import ceil_div, floor_div, maximum, minimum
from costmodel.expression import Expression, constant, lift, total
from costmodel.symbols import MEANING, symbol, sympy_symbol

NAMES = ("B", "L", "P_c")


def leaf(name: str) -> tuple[Expression, str]:
    return symbol(name), name


@st.composite
def formulas(draw: st.DrawFn, depth: int = 3) -> tuple[object, str]:
    """An expression, and Python source of the same arithmetic over fractions."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return leaf(draw(st.sampled_from(NAMES))) if draw(st.booleans()) else _number(draw)
    (a, x), (b, y) = draw(formulas(depth - 1)), draw(formulas(depth - 1))
    operation = draw(st.sampled_from(["+", "-", "*", "max", "min", "ceil", "power"]))
    if operation in "+-*":
        return {"+": a + b, "-": a - b, "*": a * b}[operation], f"({x} {operation} {y})"  # type: ignore[operator]
    if operation == "ceil":
        return ceil_div(a, symbol("P_c")), f"Fraction(math.ceil(({x}) / P_c))"
    if operation == "power":
        return lift(a) ** 2, f"(({x}) ** 2)"
    chosen = {"max": maximum, "min": minimum}[operation]
    return chosen(a, b), f"{operation}({x}, {y})"


def _number(draw: st.DrawFn) -> tuple[int, str]:
    number = draw(st.integers(-5, 5))
    return number, f"Fraction({number})"


def size(formula: Expression, at: dict[str, int]) -> float:
    """The sum of a formula's terms without their signs, which rounding errors go with."""
    return float(Expression({m: abs(c) for m, c in formula.terms.items()}).evaluate(at))


values = st.fixed_dictionaries({name: st.integers(1, 50) for name in NAMES})


@given(formulas(), values)
def test_arithmetic_is_exact(formula: tuple[object, str], at: dict[str, int]) -> None:
    made, source = formula
    fractions = {name: Fraction(value) for name, value in at.items()}
    expected = eval(source, {"math": math, "Fraction": Fraction} | fractions)
    assert lift(made).evaluate(at) == expected
    assert lift(made).approximate({name: float(value) for name, value in at.items()}) == pytest.approx(
        float(expected), rel=1e-12, abs=1e-12 * size(lift(made), at)
    )


@given(formulas(), values)
def test_sympy_says_the_same(formula: tuple[object, str], at: dict[str, int]) -> None:
    made = lift(formula[0])
    shown = made.sympy().subs({sympy_symbol(name): value for name, value in at.items()})
    assert Fraction(int(shown.p), int(shown.q)) == made.evaluate(at)


@given(st.lists(formulas(), min_size=1, max_size=4), st.lists(values, min_size=1, max_size=5))
def test_compiled_equals_exact(drawn: list[tuple[object, str]], candidates: list[dict[str, int]]) -> None:
    made = {f"f{i}": lift(formula) for i, (formula, _) in enumerate(drawn)}
    arrays = {name: np.array([at[name] for at in candidates], float) for name in NAMES}
    results = Compiled(made)(arrays)
    for name, formula in made.items():
        found = np.broadcast_to(results[name], len(candidates)) if formula.symbols() else results[name][:1]
        for actual, at in zip(found, candidates, strict=False):
            assert actual == pytest.approx(float(formula.evaluate(at)), rel=1e-12, abs=1e-12 * size(formula, at))


def test_compiled_in_chunks() -> None:
    length = np.arange(1, 2 * CHUNK + 7, dtype=float)
    result = Compiled({"f": 3 * symbol("L") ** 2 / symbol("P_c")})({"L": length, "P_c": 4.0})
    np.testing.assert_array_equal(result["f"], 3 * length**2 / 4)


def test_no_overflow_at_a_billion_tokens() -> None:
    # 4 B H d L^2 at L = 10^9 has 63 bits and more: int64 arrays would wrap around.
    formula = 4 * 32 * 128 * symbol("L") ** 2
    assert formula.evaluate({"L": 10**9}) == 16384 * 10**18
    assert Compiled({"f": formula})({"L": 1e9})["f"][0] == pytest.approx(16384e18)


@given(st.integers(-50, 50), st.integers(1, 9))
def test_division_with_rounding(a: int, b: int) -> None:
    assert (ceil_div(a, b), floor_div(a, b)) == (math.ceil(Fraction(a, b)), math.floor(Fraction(a, b)))


def test_equal_formulas_are_equal() -> None:
    x, y = symbol("L"), symbol("B")
    assert (x + y) * (x - y) == x * x - y * y
    assert hash((x + y) ** 2) == hash(x * x + 2 * x * y + y * y)
    assert x - x == 0
    assert constant(x - x + 3) == 3
    assert total([x, 1, y, -x]) == y + 1
    assert x / y * y == x


@given(values)
def test_a_cancelled_symbol_needs_no_value(at: dict[str, int]) -> None:
    assert (symbol("L") / symbol("L")).evaluate({}) == 1


def test_unknown_symbols_and_values() -> None:
    with pytest.raises(KeyError, match="no symbol named 'Q'"):
        symbol("Q")
    with pytest.raises(KeyError):
        symbol("L").evaluate({})
    with pytest.raises(TypeError, match="is no dimension"):
        lift("L")


def test_every_symbol_has_one_sympy_symbol() -> None:
    for name in MEANING:
        assert sympy_symbol(name) is sympy_symbol(name)
        assert symbol(name).sympy() == sympy.Symbol(name, **sympy_symbol(name).assumptions0)
