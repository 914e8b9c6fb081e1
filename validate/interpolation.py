"""Exact formulas from counts at numbers: the polynomial through them, proved at points that it was not fitted to."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import TypeAlias

from costmodel.errors import InputError
from costmodel.expression import Expression, lift, symbol_named, total

Point = Mapping[str, int]
Counts = Mapping[str, int]
Counter: TypeAlias = Callable[[Point], Counts]

#: The highest degree of one symbol; two points more than its coefficients tell whether it is enough.
HIGHEST = 4
POINTS = HIGHEST + 3
HELD_OUT = 6
#: Held-out sizes go this far beyond the fitted ones.
BEYOND = 40


class NotPolynomialError(ValueError):
    """Counts along one symbol that no polynomial of degree ``HIGHEST`` goes through."""

    def __init__(self, symbol: str, count: str, sizes: Sequence[int], counts: Sequence[int]) -> None:
        self.symbol, self.count, self.sizes, self.counts = symbol, count, sizes, counts
        super().__init__(f"{count} at {symbol} = {', '.join(map(str, sizes))} is {', '.join(map(str, counts))}")


class SizesRefusedError(InputError):
    """Sizes at which the module fails."""


class HeldOutError(ValueError):
    """A count at a held-out point that is not what the fitted polynomial gives there.

    Attributes:
        symbols: what has left the sizes of the fit there, one alone where that is enough.
    """

    def __init__(self, count: str, point: Point, fitted: Fraction, counted: int, symbols: Sequence[str]) -> None:
        self.count, self.point, self.symbols = count, point, symbols
        at = ", ".join(f"{symbol} = {size}" for symbol, size in point.items())
        super().__init__(f"{count} at {at} is {counted}, but {fitted} by the formula of other sizes")


@dataclass(frozen=True)
class Fit:
    """Polynomials through counts.

    Attributes:
        formulas: by the name of the count.
        evaluations: how many points were counted, the held-out ones included.
        held_out: points that no formula was fitted to; all agree.
        smallest: the smallest size of a symbol in any of them, and ``largest`` the largest.
    """

    formulas: Mapping[str, Expression]
    evaluations: int
    held_out: int
    smallest: int
    largest: int


def interpolate(count: Counter, symbols: Sequence[str], first: int, prove: Counter | None = None) -> Fit:
    """The polynomials of counts in some symbols.

    The degree in each symbol is found by finite differences at consecutive sizes, so that what depends on a remainder
    is seen; the sizes of two symbols are never alike. The polynomial is that of the tensor grid of these degrees.

    Args:
        count: counts at one point; a count that it leaves out is 0.
        first: the smallest size to count at.
        prove: counts at a held-out point, where they are found in another way.

    Raises:
        NotPolynomialError: for a count that is none along a symbol.
        HeldOutError: for a count that differs from its polynomial elsewhere.

    >>> fit = interpolate(lambda at: {"pairs": at["L"] * (at["L"] - 1) // 2 * at["B"]}, ["B", "L"], first=3)
    >>> fit.formulas["pairs"].evaluate({"B": 2, "L": 10})
    Fraction(90, 1)
    """
    return _Interpolation(count, symbols, first).fit(prove or count)


def start(symbols: Sequence[str], first: int) -> dict[str, int]:
    """The smallest sizes to count at, so far apart that no two symbols are ever alike on the grid."""
    return {symbol: first + POINTS * place for place, symbol in enumerate(symbols)}


class _Interpolation:
    def __init__(self, count: Counter, symbols: Sequence[str], first: int) -> None:
        self._count, self._symbols = count, symbols
        self._seen: dict[tuple[int, ...], Counts] = {}
        self._start = start(symbols, first)

    def fit(self, prove: Counter) -> Fit:
        degrees = {symbol: self._degrees(symbol) for symbol in self._symbols}
        nodes = {s: self._nodes(s, max(found.values(), default=0)) for s, found in degrees.items()}
        for point in itertools.product(*nodes.values()):
            self._at(point)
        names = dict.fromkeys(name for counts in self._seen.values() for name in counts)
        formulas = {
            name: self._through(name, {s: self._nodes(s, found.get(name, 0)) for s, found in degrees.items()})
            for name in names
        }
        held_out = self._held_out()
        for values in held_out:
            self._prove(formulas, dict(zip(self._symbols, values, strict=True)), prove)
        for symbol in self._symbols[1:]:
            held_out += self._prove_smallest(formulas, symbol, prove)
        sizes = [size for point in (*self._seen, *held_out) for size in point] or [0]
        return Fit(formulas, len(self._seen) + len(held_out), len(held_out), min(sizes), max(sizes))

    def _prove(self, formulas: Mapping[str, Expression], point: Point, prove: Counter) -> None:
        """Compare at a point; where that fails, at one where a single symbol has left the sizes of the fit."""
        try:
            _check(formulas, point, prove(point), self._symbols)
        except HeldOutError:
            for symbol, size in point.items():
                moved = self._start | {symbol: size}
                _check(formulas, moved, prove(moved), [symbol])
            raise

    def _prove_smallest(self, formulas: Mapping[str, Expression], symbol: str, prove: Counter) -> list[tuple[int, ...]]:
        """Compare where one symbol is as small as the first one is on the grid; nothing where that is refused."""
        smallest = min(self._start.values())
        point = {other: size + POINTS for other, size in self._start.items()} | {symbol: smallest}
        try:
            counts = prove(point)
        except SizesRefusedError:
            return []
        _check(formulas, point, counts, [symbol])
        return [tuple(point.values())]

    def _at(self, point: tuple[int, ...]) -> Counts:
        if point not in self._seen:
            self._seen[point] = self._count(dict(zip(self._symbols, point, strict=True)))
        return self._seen[point]

    def _nodes(self, symbol: str, degree: int) -> range:
        return range(self._start[symbol], self._start[symbol] + degree + 1)

    def _degrees(self, symbol: str) -> dict[str, int]:
        """The degree of each count in a symbol."""
        for points in range(4, POINTS + 1):
            sizes = self._nodes(symbol, points - 1)
            line = [self._at(tuple((self._start | {symbol: size}).values())) for size in sizes]
            names = dict.fromkeys(name for counts in line for name in counts)
            found = {name: degree([counts.get(name, 0) for counts in line]) for name in names}
            wrong = next((name for name, power in found.items() if power is None), None)
            if wrong is None:
                return {name: power for name, power in found.items() if power is not None}
        raise NotPolynomialError(symbol, wrong, sizes, [counts.get(wrong, 0) for counts in line])

    def _through(self, name: str, nodes: Mapping[str, range], fixed: tuple[int, ...] = ()) -> Expression:
        """Lagrange's polynomial through a count on a grid, one symbol after the other."""
        if len(fixed) == len(self._symbols):
            return lift(self._at(fixed).get(name, 0))
        symbol = self._symbols[len(fixed)]
        terms = (
            _lagrange(symbol, size, nodes[symbol]) * self._through(name, nodes, (*fixed, size))
            for size in nodes[symbol]
        )
        return lift(total(terms))

    def _held_out(self) -> list[tuple[int, ...]]:
        """Random points, the same in every run, with no two sizes alike."""
        if not self._symbols:
            return []
        draw, starts = random.Random(0), self._start.values()
        end = max(starts) + POINTS + BEYOND
        points = (tuple(draw.randrange(smallest, end) for smallest in starts) for _ in itertools.count())
        fresh = (point for point in points if point not in self._seen and len(set(point)) == len(point))
        return list(itertools.islice(fresh, HELD_OUT))


def degree(values: Sequence[int]) -> int | None:
    """The degree of the polynomial through values at consecutive whole numbers, at least two of which are checks.

    >>> degree([1, 4, 9, 16, 25]), degree([5, 5, 5]), degree([1, 1, 2, 2, 3, 3])
    (2, 0, None)
    """
    for power in range(len(values) - 2):
        values = [after - before for before, after in itertools.pairwise(values)]
        if not any(values):
            return power
    return None


def _lagrange(symbol: str, node: int, nodes: Sequence[int]) -> Expression:
    """The polynomial that is 1 at a node and 0 at the others."""
    others = [other for other in nodes if other != node]
    factors = (symbol_named(symbol) - other for other in others)
    return prod(factors, start=lift(Fraction(1, prod(node - other for other in others))))


def _check(formulas: Mapping[str, Expression], point: Point, counts: Counts, symbols: Sequence[str]) -> None:
    for name in sorted(formulas.keys() | counts.keys()):
        fitted = formulas[name].evaluate(point) if name in formulas else Fraction(0)
        if fitted != counts.get(name, 0):
            raise HeldOutError(name, point, fitted, counts.get(name, 0), symbols)
