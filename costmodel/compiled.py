"""Many formulas evaluated together over arrays of candidates, in float64.

The formulas become one Python function of NumPy operations in which every common product, sum and function is computed
once. It is made once for a method and called for one workload or a million.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from costmodel.expression import Expression, Monomial, Number, atom, lift

Array: TypeAlias = NDArray[np.float64]
Value: TypeAlias = float | Array

#: Candidates evaluated at a time, so that intermediate arrays stay in the second-level cache.
CHUNK = 4096

_CALLS = {
    "max": "maximum({0}, {1})",
    "min": "minimum({0}, {1})",
    "ceiling": "ceil({0})",
    "log2": "log2({0})",
    "exp2": "exp2({0})",
    "sum": "({0})",
}


@dataclass
class _Writer:
    """Writes the statements; each distinct piece gets one name."""

    scalars: frozenset[str]
    zeros: frozenset[str] = frozenset()
    lines: list[str] = field(default_factory=list)
    names: dict[object, str] = field(default_factory=dict)
    fixed: dict[int, bool] = field(default_factory=dict)

    def named(self, key: object, code: Callable[[], str]) -> str:
        name = self.names.get(key)
        if name is None:
            line = code()
            name = self.names[key] = f"t{len(self.names)}"
            self.lines.append(f"{name} = {line}")
        return name

    def expression(self, value: Expression) -> str:
        def code() -> str:
            terms = [self.term(*term) for term in value.terms.items() if not self.is_zero(term[0])]
            return " + ".join(terms) or "0.0"

        return self.named(value, code)

    def term(self, monomial: Monomial, coefficient: Number) -> str:
        """Scalars first, so that arrays are multiplied by one number at most."""
        fixed = tuple(entry for entry in monomial if self.is_scalar(entry[0]))
        varying = tuple(entry for entry in monomial if not self.is_scalar(entry[0]))
        if not fixed and not varying:
            return repr(float(coefficient))
        if not varying:
            return f"{float(coefficient)!r}*{self.product(fixed)}"
        factor = repr(float(coefficient))
        if fixed:
            factor = self.named((fixed, coefficient), lambda: f"{float(coefficient)!r}*{self.product(fixed)}")
        return self.product(varying) if factor == "1.0" else f"{factor}*{self.product(varying)}"

    def product(self, monomial: Monomial) -> str:
        def code() -> str:
            first, (number, power) = monomial[:-1], monomial[-1]
            last = self.power(number, power if power > 0 else -power)
            if not first:
                return last if power > 0 else f"1.0/{last}"
            return f"{self.product(first)}{'*' if power > 0 else '/'}{last}"

        return self.named(monomial, code)

    def power(self, number: int, power: Number) -> str:
        base = self.factor(number)
        if power == 1:
            return base
        return self.named(
            (number, power), lambda: "*".join([base] * int(power)) if power in (2, 3) else f"{base}**{float(power)!r}"
        )

    def factor(self, number: int) -> str:
        def code() -> str:
            made = atom(number)
            if not made.arguments:
                return f"values[{made.name!r}]"
            return _CALLS[made.name].format(*[self.expression(argument) for argument in made.arguments])

        return self.named(number, code)

    def is_zero(self, monomial: Monomial) -> bool:
        """Whether one of the factors is a symbol that is 0."""
        return bool(self.zeros) and any(atom(number).name in self.zeros for number, power in monomial if power > 0)

    def is_scalar(self, number: int) -> bool:
        known = self.fixed.get(number)
        if known is None:
            made = atom(number)
            names = frozenset().union(*(x.symbols() for x in made.arguments)) if made.arguments else {made.name}
            known = self.fixed[number] = names <= self.scalars
        return known


class Compiled:
    """Formulas as one function.

    Args:
        formulas: expressions or numbers, by name.
        scalars: symbols that are one number, not an array, in every call (hardware rates).
        zeros: symbols that are 0 in every call, whatever value is given: their terms are left out.
    """

    def __init__(
        self,
        formulas: Mapping[str, Expression | Number],
        scalars: frozenset[str] = frozenset(),
        zeros: frozenset[str] = frozenset(),
    ) -> None:
        self.names = tuple(formulas)
        lifted = [lift(formula) for formula in formulas.values()]
        self.symbols: frozenset[str] = frozenset().union(*(formula.symbols() for formula in lifted)) - zeros
        writer = _Writer(scalars, zeros)
        results = [writer.expression(formula) for formula in lifted]
        body = "\n    ".join([*writer.lines, f"return {', '.join(results)},"])
        functions: list[np.ufunc] = [np.maximum, np.minimum, np.ceil, np.log2, np.exp2]
        namespace: dict[str, object] = {function.__name__: function for function in functions}
        exec(f"def evaluate(values):\n    {body}", namespace)
        self._evaluate: Callable[[Mapping[str, Value]], tuple[Value, ...]] = namespace["evaluate"]  # type: ignore[assignment]

    def __call__(self, values: Mapping[str, Value]) -> dict[str, Array]:
        """The formulas' values, each as long as the longest of ``values``.

        Raises:
            KeyError: for a symbol without a value.
        """
        size = max((np.size(values[name]) for name in self.symbols), default=1)
        used = {name: _prepared(values[name], size) for name in self.symbols}
        out = {name: np.empty(size) for name in self.names}
        for start in range(0, size, CHUNK):
            part = slice(start, min(start + CHUNK, size))
            chunk = {name: value[part] if isinstance(value, np.ndarray) else value for name, value in used.items()}
            for name, result in zip(self.names, self._evaluate(chunk), strict=True):
                out[name][part] = result
        return out


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
