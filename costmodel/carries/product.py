"""The product carry: a matrix of weights, with a row and a column for each token, times values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from costmodel.carry import Carry
from costmodel.dims import is_number
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


@dataclass(frozen=True)
class Product(Carry[T]):
    """P V where P does not depend on the input, so that only V crosses a cut.

    Attributes:
        matrix: P [H, n, L], or [1, n, L] for one that all heads share: the rows of this rank's tokens.
        values: V [B, H, n, e].
    """

    matrix: T
    values: T

    kind: ClassVar[str] = "values of a weight matrix"

    def streams(self) -> tuple[T, ...]:
        return (self.values,)

    def parameters(self) -> tuple[T, ...]:
        return (self.matrix,)

    def on(self, streams: Sequence[T], parameters: Sequence[T]) -> Product[T]:
        return replace(self, values=streams[0], matrix=parameters[0])

    def whole(self, ops: Vocabulary[T]) -> T:
        return times(ops, self.matrix, self.values)


def times(ops: Vocabulary[T], matrix: T, values: T) -> T:
    """P V [B, H, n, e], of P [H or 1, n, m] and V [B, H, m, e]."""
    matrix, head = _drop_head(ops, matrix)
    return ops.contract(f"{head}ij,bhje->bhie", matrix, values)


def values_gradient(ops: Vocabulary[T], matrix: T, gradient: T) -> T:
    """The gradient of V [B, H, m, e], given that of P V."""
    matrix, head = _drop_head(ops, matrix)
    return ops.contract(f"{head}ij,bhie->bhje", matrix, gradient)


def matrix_gradient(ops: Vocabulary[T], heads: T, values: T, gradient: T) -> T:
    """The gradient of P [H or 1, n, m], given that of P V; ``heads`` is a matrix of as many heads."""
    h = ops.shape(heads)[0]
    if is_number(h, 1):
        found = ops.contract("bhie,bhje->ij", gradient, values)
        return ops.reshape(found, (1, *ops.shape(found)))
    return ops.contract("bhie,bhje->hij", gradient, values)


def _drop_head(ops: Vocabulary[T], matrix: T) -> tuple[T, str]:
    h, n, m = ops.shape(matrix)
    return (ops.reshape(matrix, (n, m)), "") if is_number(h, 1) else (matrix, "h")
