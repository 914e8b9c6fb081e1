"""All-gather of values: every rank then multiplies them with its rows of a weight matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.product import Product
from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_stretches

T = TypeVar("T")


class ByRows(Strategy):
    """Products with a matrix of which each rank holds the rows of its tokens."""

    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Product,)
    axes: ClassVar[tuple[str, ...]] = ("context",)
    cuts_rows: ClassVar[bool] = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        return equal_stretches(at)


class GatherValues(ByRows):
    """One-dimensional matrix multiplication: a rank holds the rows of P of its tokens, and gathers V.

    V is gathered again in the backward pass rather than kept, and its gradient reduce-scattered; that of P stays.
    Nothing of what is sent hides behind the product.
    """

    name: ClassVar[str] = "gather-values"
    title: ClassVar[str] = "all-gather of values, rows of the matrix on each rank"
    source: ClassVar[str] = "van de Geijn & Watts 1997 (SUMMA), Concurrency 9(4), on a 1-D grid"

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Product[T]) -> T:
        axis = axes["context"]

        def forward(ops: Vocabulary[T], matrix: T, values: T) -> tuple[T, tuple[T, ...]]:
            return carry.times(ops, matrix, ops.all_gather(values, axis, 2)), (matrix, values)

        def backward(ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T, ...]:
            matrix, values = saved
            of_matrix, of_all = carry.back(ops, matrix, ops.all_gather(values, axis, 2), gradient)
            return of_matrix, ops.cast(ops.reduce_scatter(ops.cast(of_all, "gradient"), axis, 2), "model")

        result: T = ops.custom(forward, backward, carry.matrix, carry.values)
        return result


gather_values = GatherValues()
