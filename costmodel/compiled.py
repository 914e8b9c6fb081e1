"""Many formulas evaluated together over arrays of candidates, in float64.

The formulas become a list of NumPy operations on numbered results, in which every common product, sum and function is
there once. It is made once for a method and run for one workload or a million.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, reduce
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from costmodel.expression import Entry, Expression, Monomial, Number, atom, lift

Array: TypeAlias = NDArray[np.float64]
Value: TypeAlias = float | Array

#: Candidates evaluated at a time, so that intermediate arrays stay in the second-level cache.
CHUNK = 4096

#: A function of two results; of the first alone where it takes one.
_Function: TypeAlias = Callable[[Any, Any], Any]

_FUNCTIONS: dict[str, _Function] = {
    "max": np.maximum,
    "min": np.minimum,
    "ceiling": lambda x, _: np.ceil(x),
    "log2": lambda x, _: np.log2(x),
    "exp2": lambda x, _: np.exp2(x),
}


class Tape:
    """Operations for any number of formulas: what formulas have in common is on it once.

    A place is the number of a result: of a constant, a symbol or an operation on results before it.

    Args:
        scalar: tells of a symbol that it is one number, not an array, in every call (hardware rates).
        zero: tells of a symbol that it is 0 in every call, whatever value is given: its terms are left out.
    """

    def __init__(
        self, scalar: Callable[[str], bool] = lambda _: False, zero: Callable[[str], bool] = lambda _: False
    ) -> None:
        self._scalar, self._zero = scalar, zero
        self.constants: dict[int, float] = {}
        self.symbols: dict[int, str] = {}
        self.operations: dict[int, tuple[_Function, int, int]] = {}
        self._places: dict[object, int] = {}
        self._factors: dict[int, int] = {}
        self._products = cache(self._split)
        self._fixed: list[bool] = []  # whether a result is one number in every call

    def _new(self, key: object, fixed: bool) -> int:
        place = self._places[key] = len(self._fixed)
        self._fixed.append(fixed)
        return place

    def _constant(self, number: Number | float) -> int:
        key = "constant", float(number)
        if key not in self._places:
            self.constants[self._new(key, True)] = float(number)
        return self._places[key]

    def _operation(self, function: _Function, left: int, right: int) -> int:
        key = function, left, right
        if key not in self._places:
            self.operations[self._new(key, self._fixed[left] and self._fixed[right])] = key
        return self._places[key]

    def expression(self, value: Expression) -> int:
        """The place of an expression's value."""
        place = self._places.get(value)
        if place is None:
            terms = [term for entry in value.terms.items() if (term := self._term(*entry)) is not None]
            place = reduce(lambda a, b: self._operation(operator.add, a, b), terms) if terms else self._constant(0)
            self._places[value] = place
        return place

    def _term(self, monomial: Monomial, coefficient: Number) -> int | None:
        """Scalars first, so that arrays are multiplied by one number at most; ``None`` if it is 0."""
        products = self._products(monomial)
        if products is None:
            return None
        parts = [self._constant(coefficient), *products] if coefficient != 1 or not monomial else products
        return reduce(lambda a, b: self._operation(operator.mul, a, b), parts)

    def _split(self, monomial: Monomial) -> list[int] | None:
        """The product of a monomial's scalars, and that of its arrays; ``None`` if one of the factors is 0."""
        fixed, varying, zero = list[Entry](), list[Entry](), self._constant(0)
        for number, power in monomial:
            place = self._factor(number)
            if place == zero and power > 0:
                return None
            (fixed if self._fixed[place] else varying).append((number, power))
        return [self._product(tuple(entries)) for entries in (fixed, varying) if entries]

    def _product(self, monomial: Monomial) -> int:
        place = self._places.get(monomial)
        if place is None:
            first, (number, power) = monomial[:-1], monomial[-1]
            before = self._product(first) if first else self._constant(1)
            last = self._power(number, power if power > 0 else -power)
            if power > 0:
                place = self._operation(operator.mul, before, last) if first else last
            else:
                place = self._operation(operator.truediv, before, last)
            self._places[monomial] = place
        return place

    def _power(self, number: int, power: Number) -> int:
        base = self._factor(number)
        if power in (1, 2, 3):
            return reduce(lambda a, b: self._operation(operator.mul, a, b), [base] * int(power))
        return self._operation(operator.pow, base, self._constant(power))

    def _factor(self, number: int) -> int:
        place = self._factors.get(number)
        if place is None:
            made = atom(number)
            places = [self.expression(argument) for argument in made.arguments]
            if not places and self._zero(made.name):
                place = self._constant(0)
            elif not places:
                place = self._new(made.name, self._scalar(made.name))
                self.symbols[place] = made.name
            elif made.name == "sum":
                place = places[0]
            else:
                place = self._operation(_FUNCTIONS[made.name], places[0], places[-1])
            self._factors[number] = place
        return place

    def needed(self, places: Iterable[int]) -> list[int]:
        """The places whose results these need, and they themselves, each after those that need it."""
        found, stack, operations = set[int](), list(places), self.operations
        while stack:
            place = stack.pop()
            if place not in found:
                found.add(place)
                if place in operations:
                    stack += operations[place][1:]
        return sorted(found, reverse=True)


class Compiled:
    """Formulas as one function.

    Args:
        formulas: expressions or numbers, by name.
        tape: where their operations are put, beside those of other formulas.
    """

    def __init__(self, formulas: Mapping[str, Expression | Number], tape: Tape | None = None) -> None:
        tape = Tape() if tape is None else tape
        self._results = {name: tape.expression(lift(formula)) for name, formula in formulas.items()}
        self._constants: dict[int, float] = {}
        self._inputs: dict[int, str] = {}
        self._operations: list[tuple[int, _Function, int, int, tuple[int, ...]]] = []
        used = set(self._results.values())
        for place in tape.needed(used):
            if place in tape.operations:
                function, left, right = tape.operations[place]
                dead = tuple({left, right} - used)
                used.update(dead)
                self._operations.append((place, function, left, right, dead))
            elif place in tape.symbols:
                self._inputs[place] = tape.symbols[place]
            else:
                self._constants[place] = tape.constants[place]
        self._operations.reverse()
        self.symbols = frozenset(self._inputs.values())

    def __call__(self, values: Mapping[str, Value]) -> dict[str, Array]:
        """The formulas' values, each as long as the longest of ``values``.

        Raises:
            KeyError: for a symbol without a value.
        """
        size = max((np.size(values[name]) for name in self.symbols), default=1)
        used = {name: _prepared(values[name], size) for name in self.symbols}
        out = {name: np.empty(size) for name in self._results}
        for start in range(0, size, CHUNK):
            part = slice(start, min(start + CHUNK, size))
            chunk = {name: value[part] if isinstance(value, np.ndarray) else value for name, value in used.items()}
            found = self._evaluate(chunk)
            for name, place in self._results.items():
                out[name][part] = found[place]
        return out

    def _evaluate(self, values: Mapping[str, Value]) -> dict[int, Value]:
        """The formulas' values by their places; others are dropped after their last use, to use their memory again."""
        found: dict[int, Value] = {**self._constants, **{place: values[name] for place, name in self._inputs.items()}}
        for place, function, left, right, dead in self._operations:
            found[place] = function(found[left], found[right])
            for old in dead:
                del found[old]
        return found


def _prepared(value: Value, size: int) -> Value:
    array = np.asarray(value, np.float64)
    if array.size == 1:
        return float(array.reshape(()))
    if array.shape != (size,):
        raise ValueError(f"an array of {array.shape} candidates among arrays of {size}")
    return array


def evaluate(formulas: Sequence[Expression | Number], values: Mapping[str, Value]) -> list[Array]:
    """Several formulas evaluated once."""
    return list(Compiled({str(i): formula for i, formula in enumerate(formulas)})(values).values())
