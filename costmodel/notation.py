"""Formulas as people write them: factored, with symbols in one order, as text, Python or LaTeX.

What all terms have in common is taken out, then what most of the remaining ones have, and so on. Of a maximum, what
all arguments have in common is taken out too: symbols are positive.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, partial, reduce
from math import gcd, lcm

from costmodel.expression import Atom, Expression, Monomial, Number, atom, call, exact_call, lift, symbol_named
from costmodel.symbols import MEANING

_PLACE = {name: place for place, name in enumerate(MEANING)}


@dataclass(frozen=True)
class Call:
    """A function of products: a maximum, a minimum, a ceiling; ``sum`` is a sum raised to a power."""

    name: str
    arguments: tuple[Product, ...]


@dataclass(frozen=True)
class Product:
    """coefficient x factors to their powers x (sum of products), the sum left out where it is 1."""

    coefficient: Fraction
    factors: tuple[tuple[str | Call, Number], ...]
    terms: tuple[Product, ...] = ()


# Factoring ----------------------------------------------------------------------------------------------------------


def factored(value: Expression) -> Product:
    """The expression with common factors taken out."""
    return _product(dict(simplified(value).terms))


def simplified(value: Expression) -> Expression:
    """The expression without functions that are decided by symbols being whole numbers, and never negative."""
    return lift(value.map_symbols(symbol_named, _function))


def _function(name: str, *arguments: Expression) -> Expression:
    lifted = [lift(x) for x in arguments]
    if name == "ceiling" and _is_whole(lifted[0]):
        return lifted[0]
    if name not in ("max", "min"):
        return exact_call(name, *lifted)
    left: list[Expression] = []
    for x in _flat(name, lifted):
        if not any(_decided(name, y, x) for y in left):
            left = [y for y in left if not _decided(name, x, y)] + [x]
    return lift(reduce(partial(call, name), left))


def _decided(name: str, x: Expression, y: Expression) -> bool:
    """Whether a maximum or minimum is never ``y`` alone, because ``x`` is always as large or as small."""
    return _never_negative(x - y if name == "max" else y - x)


def _is_whole(value: Expression) -> bool:
    """Whether an expression is a sum of products of symbols, which are whole numbers."""
    powers = [factor for monomial in value.terms for factor in monomial]
    return all(isinstance(number, int) for number in value.terms.values()) and all(
        isinstance(power, int) and power > 0 and not atom(number).arguments for number, power in powers
    )


@cache
def _never_negative(value: Expression) -> bool:
    """Whether products of what is never negative outweigh those that are subtracted, as H·d does d.

    What this does not see counts as possibly negative.
    """
    numbers = {number for monomial in value.terms for number, _ in monomial}
    if not all(map(_atom_never_negative, numbers)):
        return False
    spare = {monomial: number for monomial, number in value.terms.items() if number > 0}
    return all(number > 0 or _outweighed(small, -number, spare) for small, number in value.terms.items())


def _outweighed(small: Monomial, needed: Number, spare: dict[Monomial, Number]) -> bool:
    """Whether products that are at least as large are left to subtract one from; they are used up."""
    for large, there in spare.items():
        if _at_least(large, small):
            used = min(needed, there)
            spare[large] = there - used
            needed -= used
    return needed == 0


def _at_least(large: Monomial, small: Monomial) -> bool:
    """Whether one product is another times symbols that are at least 1: all but the indices of ranks."""
    more = _without(large, dict(small))
    return all(
        power > 0 and not atom(number).arguments and not atom(number).name.startswith("rank_") for number, power in more
    )


@cache
def _atom_never_negative(number: int) -> bool:
    made = atom(number)
    if made.name == "log2":
        return _never_negative(made.arguments[0] - 1)
    if made.name == "exp2":
        return True
    decides = any if made.name == "max" else all
    return not made.arguments or decides(_never_negative(lift(x)) for x in made.arguments)


def _product(terms: Mapping[Monomial, Number]) -> Product:
    if not terms:
        return Product(Fraction(0), ())
    coefficient, common = _common(terms)
    rest = {_without(monomial, common): Fraction(number) / coefficient for monomial, number in terms.items()}
    outer, factors = _calls(common)
    if len(rest) == 1:
        return Product(coefficient * outer, factors)
    groups = _ordered(_grouped(rest))
    if len(groups) > 1:
        return Product(coefficient * outer, factors, groups)
    (both,) = groups
    return Product(coefficient * outer, factors + both.factors, both.terms)


def _common(terms: Mapping[Monomial, Number]) -> tuple[Fraction, dict[int, Number]]:
    """The number and the powers that all terms have; negative powers of any term, so that none is left inside."""
    numbers = [Fraction(number) for number in terms.values()]
    coefficient = Fraction(gcd(*(n.numerator for n in numbers)), lcm(*(n.denominator for n in numbers)))
    if all(number < 0 for number in numbers):
        coefficient = -coefficient
    powers = [dict(monomial) for monomial in terms]
    every = set().union(*powers)
    least = {number: min(power.get(number, 0) for power in powers) for number in every}
    return coefficient, {number: power for number, power in least.items() if power}


def _without(monomial: Monomial, common: Mapping[int, Number]) -> Monomial:
    left = dict(monomial)
    for number, power in common.items():
        left[number] = left.get(number, 0) - power
    return tuple(sorted((number, power) for number, power in left.items() if power))


def _grouped(terms: Mapping[Monomial, Number]) -> Iterable[Product]:
    """The terms of a sum, those that share a factor together, the most frequent factor first.

    Where what is left is a multiple of what a factor was taken out of, the sum is a product of two sums.
    """
    while terms:
        shared = Counter(number for monomial in terms for number, _ in monomial)
        most = max(shared, key=lambda number: (shared[number], _rank(atom(number).name), -number), default=None)
        if most is None or shared[most] == 1:
            yield from (_product({monomial: number}) for monomial, number in terms.items())
            return
        group = {monomial: number for monomial, number in terms.items() if most in dict(monomial)}
        terms = {monomial: number for monomial, number in terms.items() if monomial not in group}
        made = _product(group)
        left = _product(terms) if len(terms) == len(group) else None
        if left is not None and left.terms and left.terms == made.terms:
            outer = _ordered(Product(part.coefficient, part.factors) for part in (made, left))
            yield Product(Fraction(1), ((Call("sum", (Product(Fraction(1), (), made.terms),)), 1),), outer)
            return
        yield made


def _calls(powers: Mapping[int, Number]) -> tuple[Fraction, tuple[tuple[str | Call, Number], ...]]:
    """Factors by what they are; a maximum to the power 1 hands out what its arguments have in common."""
    coefficient, found = Fraction(1), Counter[str | Call]()
    for number, power in powers.items():
        made = atom(number)
        if not made.arguments:
            found[made.name] += power  # type: ignore[assignment]
        elif made.name in ("max", "min") and power == 1:
            outer, inner, left = _taken_out(made)
            coefficient *= outer
            for name, taken in inner:
                found[name] += taken  # type: ignore[assignment]
            found[left] += 1
        else:
            found[Call(made.name, tuple(factored(lift(x)) for x in made.arguments))] += power  # type: ignore[assignment]
    return coefficient, _in_order({factor: power for factor, power in found.items() if power})


def _taken_out(made: Atom) -> tuple[Fraction, tuple[tuple[str | Call, Number], ...], Call]:
    arguments = [argument.terms for argument in _flat(made.name, made.arguments)]
    together: dict[Monomial, Number] = {}
    for terms in arguments:
        together |= terms
    coefficient, common = (Fraction(1), {}) if any(not terms for terms in arguments) else _common(together)
    coefficient, common = abs(coefficient), {n: power for n, power in common.items() if _atom_never_negative(n)}
    inside = [{_without(m, common): Fraction(n) / coefficient for m, n in terms.items()} for terms in arguments]
    outer, factors = _calls(common)
    products = dict.fromkeys(sorted((_product(terms) for terms in inside), key=_order))
    return coefficient * outer, factors, Call(made.name if len(products) > 1 else "sum", tuple(products))


def _flat(name: str, arguments: Iterable[Expression]) -> Iterable[Expression]:
    """The arguments of a function, those of the same function in them included."""
    for argument in arguments:
        ((monomial, number),) = argument.terms.items() if len(argument.terms) == 1 else [((), 0)]
        inner = atom(monomial[0][0]) if len(monomial) == 1 and monomial[0][1] == 1 and number == 1 else None
        if inner is not None and inner.name == name:
            yield from _flat(name, inner.arguments)
        else:
            yield argument


# Order --------------------------------------------------------------------------------------------------------------


def _rank(name: str) -> tuple[int, str]:
    return _PLACE.get(name, len(_PLACE)), name


def _in_order(factors: Mapping[str | Call, Number]) -> tuple[tuple[str | Call, Number], ...]:
    def key(entry: tuple[str | Call, Number]) -> tuple[bool, tuple[int, str]]:
        factor = entry[0]
        return isinstance(factor, Call), _rank(factor) if isinstance(factor, str) else (0, PYTHON.call(factor))

    return tuple(sorted(factors.items(), key=key))


def _ordered(terms: Iterable[Product]) -> tuple[Product, ...]:
    return tuple(sorted(terms, key=_order))


def _order(product: Product) -> tuple[bool, float, tuple[tuple[int, str], ...], str]:
    """Positive terms first; of these those of the highest degree, then by their symbols."""
    names = tuple(_rank(factor) for factor, _ in product.factors if isinstance(factor, str))
    return product.coefficient < 0, -_degree(product), names, PYTHON.write(product)


def _degree(product: Product) -> float:
    inside = max((_degree(term) for term in product.terms), default=0.0)
    return inside + sum(float(power) for _, power in product.factors)


# Writing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style(ABC):
    """A way of writing products."""

    times: str

    def write(self, product: Product) -> str:
        """The product as text."""
        sign = "-" if product.coefficient < 0 else ""
        return sign + self._unsigned(product)

    def _unsigned(self, product: Product) -> str:
        over: list[str] = []
        under: list[str] = []
        size = abs(product.coefficient)
        if size.denominator != 1:
            under.append(str(size.denominator))
        for factor, power in product.factors:
            (over if power > 0 else under).append(self.power(self.factor(factor), power if power > 0 else -power))
        if product.terms:
            over.append(self.parentheses(self.sum(product.terms)))
        if size.numerator != 1 or not over:
            over.insert(0, str(size.numerator))
        return self.fraction(over, under) if under else self.times.join(over)

    def sum(self, terms: Sequence[Product]) -> str:
        """The terms of a sum."""
        first, *others = terms
        signs = (" - " if term.coefficient < 0 else " + " for term in others)
        return self.write(first) + "".join(s + self._unsigned(term) for s, term in zip(signs, others, strict=True))

    def factor(self, factor: str | Call) -> str:
        """One factor."""
        return self.symbol(factor) if isinstance(factor, str) else self.call(factor)

    def call(self, call: Call) -> str:
        """A function."""
        arguments = [self._bare(argument) for argument in call.arguments]
        return self.parentheses(arguments[0]) if call.name == "sum" else self.function(call.name, arguments)

    def _bare(self, product: Product) -> str:
        """A sum that stands alone needs no parentheses."""
        alone = product.terms and not product.factors and product.coefficient == 1
        return self.sum(product.terms) if alone else self.write(product)

    def whole(self, product: Product) -> str:
        """A formula that stands alone."""
        return self._bare(product)

    def parentheses(self, text: str) -> str:
        """Text held together."""
        return f"({text})"

    @abstractmethod
    def symbol(self, name: str) -> str: ...

    @abstractmethod
    def power(self, base: str, power: Number) -> str: ...

    @abstractmethod
    def fraction(self, over: Sequence[str], under: Sequence[str]) -> str: ...

    @abstractmethod
    def function(self, name: str, arguments: Sequence[str]) -> str: ...


#: What powers of 2 begin with, to be put in parentheses where they are raised again.
EXPONENTIAL = "2^"


@dataclass(frozen=True)
class Python(Style):
    """Python's own arithmetic, with ``max``, ``min``, ``ceil``, ``log2`` and ``exp2``."""

    times: str = "*"

    def symbol(self, name: str) -> str:
        return name

    def power(self, base: str, power: Number) -> str:
        exponent = str(power) if Fraction(power).denominator == 1 else f"({power})"
        return base if power == 1 else f"{base}**{exponent}"

    def fraction(self, over: Sequence[str], under: Sequence[str]) -> str:
        divisor = under[0] if len(under) == 1 else self.parentheses(self.times.join(under))
        return f"{self.times.join(over)}/{divisor}"

    def function(self, name: str, arguments: Sequence[str]) -> str:
        return f"{'ceil' if name == 'ceiling' else name}({', '.join(arguments)})"


@dataclass(frozen=True)
class Text(Python):
    """For reading in a terminal."""

    times: str = "·"
    digits: Mapping[int, int] = field(default_factory=lambda: str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))

    def power(self, base: str, power: Number) -> str:
        if power == 1:
            return base
        whole = Fraction(power).denominator == 1
        base = f"({base})" if base.startswith(EXPONENTIAL) else base
        return base + (str(power).translate(self.digits) if whole else f"^({power})")

    def function(self, name: str, arguments: Sequence[str]) -> str:
        if name == "exp2":
            return f"{EXPONENTIAL}({arguments[0]})"
        return f"⌈{arguments[0]}⌉" if name == "ceiling" else f"{name}({', '.join(arguments)})"


@dataclass(frozen=True)
class Latex(Style):
    """For papers."""

    times: str = r" \, "

    def symbol(self, name: str) -> str:
        base, _, index = name.partition("_")
        base = base if len(base) == 1 else rf"\mathrm{{{base}}}"
        return f"{base}_{{{index}}}" if index else base

    def power(self, base: str, power: Number) -> str:
        base = self.parentheses(base) if base.startswith(EXPONENTIAL) else base
        return base if power == 1 else rf"{{{base}}}^{{{power}}}"

    def fraction(self, over: Sequence[str], under: Sequence[str]) -> str:
        return rf"\frac{{{self.times.join(over)}}}{{{self.times.join(under)}}}"

    def function(self, name: str, arguments: Sequence[str]) -> str:
        if name == "ceiling":
            return rf"\left\lceil {arguments[0]} \right\rceil"
        if name == "exp2":
            return rf"{EXPONENTIAL}{{{arguments[0]}}}"
        name = {"log2": "log_2"}.get(name, name)
        return rf"\{name}\left({', '.join(arguments)}\right)"

    def parentheses(self, text: str) -> str:
        return rf"\left({text}\right)"


PYTHON, TEXT, LATEX = Python(), Text(), Latex()


def as_text(value: Expression) -> str:
    """A formula for reading: ``4·B·H·L²·d/P_c``.

    >>> from costmodel.symbols import symbol
    >>> B, D, H, L = (symbol(name) for name in "BDHL")
    >>> as_text((B * L * D + 2 * B * L * H) / symbol("P_c"))
    'B·L·(D + 2·H)/P_c'
    """
    return TEXT.whole(factored(value))


def as_python(value: Expression) -> str:
    """A formula that Python evaluates, given its symbols, ``ceil``, ``log2`` and ``exp2``: ``4*B*H*L**2*d/P_c``."""
    return PYTHON.whole(factored(value))


def as_latex(value: Expression) -> str:
    """A formula in LaTeX's mathematics."""
    return LATEX.whole(factored(value))


def symbol_as_latex(name: str) -> str:
    """A symbol in LaTeX's mathematics."""
    return LATEX.symbol(name)
