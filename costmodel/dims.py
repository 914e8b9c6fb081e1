"""Arithmetic on dimensions, the same for every reader.

A dimension is a SymPy expression when a method is read as formulas, a number or a float64 NumPy array when it is
read as time (one workload, or one array entry per candidate), and an ``int`` when it runs. Methods written over
the op vocabulary use ``+ - * /`` and the functions below, and so never learn which it is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import sympy

#: sympy.Expr | float | numpy.ndarray. SymPy's operators are untyped, so a precise union would only add casts.
Dim: TypeAlias = Any
Shape: TypeAlias = tuple[Dim, ...]


def is_symbolic(*values: Dim) -> bool:
    """Whether any of the values is a SymPy expression; does not import SymPy to find out."""
    if "sympy" not in sys.modules:
        return False
    basic: type[sympy.Basic] = sys.modules["sympy"].Basic
    return any(isinstance(value, basic) for value in values)


def maximum(a: Dim, b: Dim) -> Dim:
    """Elementwise maximum.

    >>> maximum(3, 4)
    4
    """
    if is_symbolic(a, b):
        return sys.modules["sympy"].Max(a, b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.maximum(a, b)
    return max(a, b)


def minimum(a: Dim, b: Dim) -> Dim:
    """Elementwise minimum."""
    if is_symbolic(a, b):
        return sys.modules["sympy"].Min(a, b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.minimum(a, b)
    return min(a, b)


def clip(value: Dim, low: Dim, high: Dim) -> Dim:
    """The value, moved into [low, high]."""
    return minimum(maximum(value, low), high)


def ceil_div(a: Dim, b: Dim) -> Dim:
    """The smallest whole number of pieces of size b that cover a.

    >>> ceil_div(7, 2)
    4
    """
    if is_symbolic(a, b):
        return sys.modules["sympy"].ceiling(sys.modules["sympy"].sympify(a) / b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.ceil(np.asarray(a) / b)
    return -(-a // b) if isinstance(a, int) and isinstance(b, int) else math.ceil(a / b)


def floor_div(a: Dim, b: Dim) -> Dim:
    """The largest whole number of pieces of size b that fit in a (towards minus infinity)."""
    return -ceil_div(-a, b)


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
    result: Dim = 1
    for value in values:
        result = result * value
    return result


def same(a: Dim, b: Dim) -> bool:
    """Whether two dimensions are equal for every value of their symbols."""
    if a is b:
        return True
    if is_symbolic(a, b):
        return bool(a == b) or sys.modules["sympy"].simplify(a - b) == 0
    return bool(np.all(a == b))
