"""A ring of values, for a matrix cut by rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.product import Product
from costmodel.dims import Dim, divide
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategies.gather_values import ByRows

T = TypeVar("T")


class RingValues(ByRows):
    """Blocks of values pass every rank, which multiplies each by the columns that belong to it; one is on its way while
    another is in use, and no rank holds all values.
    """

    name: ClassVar[str] = "ring-values"
    title: ClassVar[str] = "a ring of values, rows of the matrix on each rank"
    source: ClassVar[str] = "Wang et al. 2023 (collective matmul), doi 10.1145/3567955.3567959"

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Product[T]) -> T:
        axis = axes["context"]

        def forward(ops: Vocabulary[T], matrix: T, values: T) -> tuple[T, tuple[T, ...]]:
            out: Any = None
            for step, (block,), _ in ops.rotate(axis, (values,)):
                part = carry.times(ops, _columns(ops, matrix, axis, step), block)
                out = ops.cast(part, "accumulate") if out is None else ops.add_into(out, part, 2)
            return ops.cast(out, "model"), (matrix, values)

        def backward(ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T, ...]:
            matrix, values = saved
            of_matrix, last = ops.zeros_like(matrix), len(ops.shape(matrix)) - 1
            for step, (block,), home in ops.rotate(axis, (values,), (ops.zeros_like(values, "gradient"),)):
                columns, back = carry.back(ops, _columns(ops, matrix, axis, step), block, gradient)
                of_matrix = ops.add_into(of_matrix, columns, last, _start(ops, block, axis, step))
                home.depart(ops.add_into(home.arrive()[0], back, 2))
            return of_matrix, ops.cast(home.home()[0], "model")

        result: T = ops.custom(forward, backward, carry.matrix, carry.values)
        return result


def _columns(ops: Vocabulary[T], matrix: T, axis: Axis, step: Any) -> T:
    """The columns of P that belong to the visiting block."""
    last = len(ops.shape(matrix)) - 1
    size = divide(ops.shape(matrix)[last], axis.size)
    return ops.slice(matrix, last, ops.visiting(axis, step) * size, size)


def _start(ops: Vocabulary[T], block: T, axis: Axis, step: Any) -> Dim:
    return ops.visiting(axis, step) * ops.shape(block)[2]


ring_values = RingValues()
