"""Formulas of dimensions: sums of products of powers, exact.

A formula of this project is a polynomial (with negative powers) in the symbols of ``costmodel.symbols`` and a few
functions (maximum, minimum, ceiling, base-2 logarithm and power). Kept in that normal form, adding and comparing
formulas is adding and comparing dictionaries: a method is traced in milliseconds, without SymPy, whose import alone
takes longer than a plan may.
``Expression.sympy`` gives the SymPy expression; ``costmodel.compiled`` evaluates many over arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

if TYPE_CHECKING:
    import sympy

Number: TypeAlias = int | Fraction
#: An atom to a power; atoms are numbered in the order in which they were first made.
Entry: TypeAlias = tuple[int, Number]
#: Sorted by atom.
Monomial: TypeAlias = tuple[Entry, ...]


@dataclass(frozen=True)
class Atom:
    """What a monomial is made of: a symbol, or a function of expressions (``sum`` is an expression as one factor)."""

    name: str
    arguments: tuple[Expression, ...] = ()


_atoms: list[Atom] = []
_numbers: dict[Atom, int] = {}
_products: dict[tuple[Monomial, Monomial], Monomial] = {}


def _log2(x: Any) -> int | float:
    """A whole number for powers of two; otherwise rounded to floating point."""
    exact = Fraction(x)
    numerator, denominator = exact.numerator, exact.denominator
    if numerator > 0 and not numerator & (numerator - 1) and not denominator & (denominator - 1):
        return numerator.bit_length() - denominator.bit_length()
    return math.log2(exact)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "max": max,
    "min": min,
    "ceiling": math.ceil,
    "sum": lambda x: x,
    "log2": _log2,
    "exp2": lambda x: Fraction(2) ** x,
}


def atom(number: int) -> Atom:
    """The atom of a monomial's entry."""
    return _atoms[number]


def _of_atom(made: Atom) -> Expression:
    number = _numbers.get(made)
    if number is None:
        number = _numbers[made] = len(_atoms)
        _atoms.append(made)
    return Expression({((number, 1),): 1})


@cache
def symbol_named(name: str) -> Expression:
    """A symbol: a positive integer, or a rank's index."""
    return _of_atom(Atom(name))


class UndecidedError(TypeError):
    """A formula where only a number will do, such as the count of a Python loop.

    Attributes:
        symbols: names of the symbols that would have to be numbers.
    """

    def __init__(self, formula: Expression) -> None:
        self.symbols = formula.symbols()
        super().__init__(f"{', '.join(sorted(self.symbols))} must be a number here, not a symbol")


class Expression:
    """A sum of monomials with exact coefficients; immutable. Arithmetic with numbers gives expressions.

    >>> x, y = symbol_named("x"), symbol_named("y")
    >>> (x + y) * (x - y) == x * x - y * y
    True
    >>> (6 * x / y).evaluate({"x": 4, "y": 3})
    Fraction(8, 1)
    """

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: dict[Monomial, Number]) -> None:
        self.terms = terms
        self._hash: int | None = None

    # Arithmetic -------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Expression:
        terms = dict(self.terms)
        for monomial, coefficient in _terms(other).items():
            total = terms.get(monomial, 0) + coefficient
            if total:
                terms[monomial] = total
            else:
                del terms[monomial]
        return Expression(terms)

    def __mul__(self, other: Any) -> Expression:
        if isinstance(other, int) and other:
            return Expression({monomial: coefficient * other for monomial, coefficient in self.terms.items()})
        factors = _terms(other)
        if len(factors) == 1:
            return Expression(_scaled(self.terms, factors))
        if len(self.terms) == 1:
            return Expression(_scaled(factors, self.terms))
        terms: dict[Monomial, Number] = {}
        for right, factor in factors.items():
            for left, coefficient in self.terms.items():
                monomial = _times(left, right)
                total = terms.get(monomial, 0) + coefficient * factor
                if type(total) is Fraction:
                    total = _whole(total)
                if total:
                    terms[monomial] = total
                else:
                    del terms[monomial]
        return Expression(terms)

    def __neg__(self) -> Expression:
        return Expression({monomial: -coefficient for monomial, coefficient in self.terms.items()})

    def __sub__(self, other: Any) -> Expression:
        terms = dict(self.terms)
        for monomial, coefficient in _terms(other).items():
            total = terms.get(monomial, 0) - coefficient
            if total:
                terms[monomial] = total
            else:
                del terms[monomial]
        return Expression(terms)

    def __rsub__(self, other: Any) -> Expression:
        return lift(other) + -self

    def __truediv__(self, other: Any) -> Expression:
        return self * _inverse(lift(other))

    def __rtruediv__(self, other: Any) -> Expression:
        return lift(other) * _inverse(self)

    def __pow__(self, power: float | Fraction | Expression) -> Expression:
        if isinstance(power, Expression):
            raise UndecidedError(power)
        if isinstance(power, int) and power >= 0:
            return math.prod([self] * power, start=lift(1))
        exponent = Fraction(power)
        if len(self.terms) != 1:
            return _of_atom(Atom("sum", (self,))) ** power
        ((monomial, coefficient),) = self.terms.items()
        raised = tuple((number, _whole(own * exponent)) for number, own in monomial)
        if exponent.denominator != 1:
            if coefficient != 1:
                raise ValueError(f"the root of {self} is not a formula with exact coefficients")
            return Expression({raised: 1})
        return Expression({raised: _whole(Fraction(coefficient) ** int(exponent))})

    __radd__ = __add__
    __rmul__ = __mul__

    def _undecided(self, *_: object) -> NoReturn:
        raise UndecidedError(self)

    __index__ = __int__ = __float__ = __rpow__ = _undecided
    __lt__ = __le__ = __gt__ = __ge__ = _undecided

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Expression):
            return self is other or self.terms == other.terms
        return isinstance(other, (int, float, Fraction)) and self.terms == _terms(other)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self.terms.items()))
        return self._hash

    # Reading ----------------------------------------------------------------------------------------------------

    def symbols(self) -> set[str]:
        """Names of the symbols that occur."""
        numbers = {number for monomial in self.terms for number, _ in monomial}
        return set().union(*(_symbols_of(number) for number in numbers))

    def evaluate(self, values: Mapping[str, Number]) -> Fraction:
        """The exact value, given one for every symbol; logarithms are exact for powers of two, else rounded.

        Raises:
            KeyError: for a symbol without a value.
            ValueError: for a root of a number that is not a square.
        """
        result = self.map_symbols(lambda name: values[name], lambda function, *xs: FUNCTIONS[function](*xs))
        return Fraction(result)

    def approximate(self, values: Mapping[str, float]) -> float:
        """The value in floating point, given one for every symbol."""
        return float(self.map_symbols(values.__getitem__, lambda function, *xs: FUNCTIONS[function](*xs)))

    def map_symbols(self, symbol: Callable[[str], Any], function: Callable[..., Any]) -> Any:
        """The expression rebuilt in another arithmetic: from values of its symbols, and a function of each kind."""
        total: Any = 0
        for monomial, coefficient in self.terms.items():
            term: Any = coefficient
            for number, power in monomial:
                made = _atoms[number]
                value = (
                    function(made.name, *(x.map_symbols(symbol, function) for x in made.arguments))
                    if made.arguments
                    else symbol(made.name)
                )
                term = term * (Fraction(value) ** power if isinstance(value, int) and power < 0 else value**power)
            total = total + term
        return total

    def substitute(self, values: Mapping[str, Any]) -> Expression:
        """The expression with numbers or expressions in place of some symbols."""
        return lift(
            self.map_symbols(lambda name: values.get(name, symbol_named(name)), lambda f, *xs: lift(call(f, *xs)))
        )

    def sympy(self) -> sympy.Expr:
        """As a SymPy expression, whose symbols carry the assumptions of ``costmodel.symbols``."""
        import sympy

        from costmodel.symbols import sympy_symbol

        functions = {"max": sympy.Max, "min": sympy.Min, "ceiling": sympy.ceiling, "sum": lambda x: x}
        functions |= {"log2": lambda x: sympy.log(x, 2), "exp2": lambda x: 2**x}
        total = sympy.Integer(0)
        for monomial, coefficient in self.terms.items():
            term = sympy.Rational(coefficient)
            for number, power in monomial:
                made = _atoms[number]
                arguments = [x.sympy() for x in made.arguments]
                value = functions[made.name](*arguments) if arguments else sympy_symbol(made.name)
                term *= value ** sympy.Rational(power)
            total += term
        return total

    _sympy_ = sympy

    def __repr__(self) -> str:
        return str(self.sympy())


def lift(value: Any) -> Expression:
    """A number as an expression; floats are taken exactly.

    Raises:
        TypeError: for what is no number.
    """
    return value if isinstance(value, Expression) else Expression(_terms(value))


def total(values: Iterable[Any]) -> Any:
    """The sum of dimensions, made in one go."""
    terms: dict[Monomial, Number] = {}
    symbolic = False
    for value in values:
        symbolic = symbolic or isinstance(value, Expression)
        for monomial, coefficient in _terms(value).items():
            terms[monomial] = terms.get(monomial, 0) + coefficient
    result = Expression({monomial: coefficient for monomial, coefficient in terms.items() if coefficient})
    return result if symbolic else constant(result)


def constant(value: Any) -> Number | None:
    """The number that an expression is, or ``None``."""
    if not isinstance(value, Expression):
        return _exact(value)
    if not value.terms:
        return 0
    return value.terms.get(()) if len(value.terms) == 1 else None


def call(function: str, *arguments: Any) -> Any:
    """A function of expressions; of numbers, its value."""
    numbers = [constant(x) for x in arguments]
    if all(number is not None for number in numbers):
        return FUNCTIONS[function](*numbers)
    lifted = tuple(lift(x) for x in arguments)
    if len(lifted) == 2 and lifted[0] == lifted[1]:
        return lifted[0]
    return _of_atom(Atom(function, lifted))


def never_above(low: Any, high: Any) -> bool:
    """Whether ``high - low`` is a sum without negative terms.

    >>> x, y = symbol_named("x"), symbol_named("y")
    >>> never_above(x, 2 * x + y), never_above(x, 2 * y), never_above(3, 2)
    (True, False, False)
    """
    less, more = _terms(low), _terms(high)
    return all(more.get(monomial, 0) >= coefficient for monomial, coefficient in less.items()) and all(
        coefficient > 0 for monomial, coefficient in more.items() if monomial not in less
    )


def factor(value: Any) -> Any:
    """A sum as one factor, which further sums and products hold as a whole instead of writing it out."""
    if not isinstance(value, Expression) or len(value.terms) < 2:
        return value
    return _of_atom(Atom("sum", (value,)))


def exact_call(function: str, *arguments: Any) -> Expression:
    """A function of expressions, kept as one where its value would be rounded, as of ``log2(48)``."""
    made = call(function, *arguments)
    return _of_atom(Atom(function, tuple(lift(x) for x in arguments))) if isinstance(made, float) else lift(made)


@cache
def _inverse(value: Expression) -> Expression:
    return value**-1


@cache
def _symbols_of(number: int) -> frozenset[str]:
    """Symbols of an atom."""
    made = _atoms[number]
    return frozenset({made.name}) if not made.arguments else frozenset().union(*(x.symbols() for x in made.arguments))


def _times(left: Monomial, right: Monomial) -> Monomial:
    if not left or not right:
        return left or right
    found = _products.get((left, right))
    if found is None:
        powers = dict(left)
        for number, power in right:
            powers[number] = powers.get(number, 0) + power
        found = tuple(sorted((number, power) for number, power in powers.items() if power))
        _products[left, right] = found
    return found


def _scaled(terms: dict[Monomial, Number], by: dict[Monomial, Number]) -> dict[Monomial, Number]:
    """Products with a single term: as many, as no two of them are of one monomial."""
    ((right, factor),) = by.items()
    return {
        _times(left, right): number if type(number := coefficient * factor) is int else _whole(number)
        for left, coefficient in terms.items()
    }


def _terms(value: Any) -> dict[Monomial, Number]:
    """The terms of an expression or a number."""
    if isinstance(value, Expression):
        return value.terms
    number = _exact(value)
    return {(): number} if number else {}


def _exact(value: Any) -> Number:
    if isinstance(value, int):
        return value
    if isinstance(value, (float, Fraction)):
        return _whole(Fraction(value))
    raise TypeError(f"{value!r} is no dimension")


def _whole(value: Fraction | int) -> Number:
    return value.numerator if value.denominator == 1 else value
