"""Arithmetic on dimensions, the same for every reader.

A dimension is an ``Expression`` when a method is read as formulas, and an ``int`` when it runs. Methods written over
the op vocabulary use ``+ - * /`` and the functions below, and so never learn which it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from costmodel.expression import Expression, call, constant

#: Expression | int | float. A precise union would only add casts where shapes are computed.
Dim: TypeAlias = Any
Shape: TypeAlias = tuple[Dim, ...]


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger of two.

    >>> maximum(3, 4)
    4
    """
    return call("max", a, b) if _symbolic(a, b) else _larger(a, b)


def _larger(a: Dim, b: Dim) -> Dim:
    return np.maximum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else max(a, b)


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller of two."""
    return call("min", a, b) if _symbolic(a, b) else min(a, b)


def clip(value: Dim, low: Dim, high: Dim) -> Dim:
    """The value, moved into [low, high]."""
    return minimum(maximum(value, low), high)


def ceil_div(a: Dim, b: Dim) -> Dim:
    """The smallest whole number of pieces of size b that cover a.

    >>> ceil_div(7, 2)
    4
    """
    if _symbolic(a, b):
        return call("ceiling", a / b)
    return -(-a // b) if isinstance(a, int) and isinstance(b, int) else math.ceil(a / b)


def floor_div(a: Dim, b: Dim) -> Dim:
    """The largest whole number of pieces of size b that fit in a (towards minus infinity)."""
    return -ceil_div(-a, b)


def doublings(value: Dim) -> Dim:
    """The least n with 2^n >= value.

    >>> doublings(1), doublings(5), doublings(8)
    (0, 3, 3)
    """
    return call("ceiling", log2(value))


def log2(value: Dim) -> Dim:
    """The base-2 logarithm of a size; exact for powers of two, otherwise rounded to floating point.

    >>> log2(1024), log2(Expression({}) + 8)
    (10, 3)
    """
    return call("log2", value)


def exp2(power: Dim) -> Dim:
    """2 to a whole, not negative, power.

    >>> exp2(5), exp2(doublings(5))
    (32, 8)
    """
    value = call("exp2", power)
    return value if _symbolic(value) else int(value)


def divide(a: Dim, b: Dim) -> Dim:
    """A dimension cut into b equal parts; exact: an ``int`` that does not divide is an error.

    Raises:
        ValueError: if both are ``int`` and b does not divide a.
    """
    if isinstance(a, int) and isinstance(b, int):
        if a % b:
            raise ValueError(f"{a} cannot be cut into {b} equal parts")
        return a // b
    return a / b


def product(values: Iterable[Dim]) -> Dim:
    """The product of dimensions; 1 for none."""
    number: Dim = 1  # numbers first: they are cheaper to multiply than formulas
    formula: Dim = None
    for value in values:
        if isinstance(value, Expression):
            formula = value if formula is None else formula * value
        else:
            number = number * value
    return number if formula is None else formula * number


def same(a: Dim, b: Dim) -> bool:
    """Whether two dimensions are equal for every value of their symbols."""
    return bool(a == b)


def is_number(value: Dim, number: int) -> bool:
    """Whether a dimension is that number, whatever its symbols."""
    return constant(value) == number


def _symbolic(*values: Dim) -> bool:
    return any(isinstance(value, Expression) for value in values)
