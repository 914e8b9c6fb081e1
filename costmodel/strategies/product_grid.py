"""A matrix of weights cut by rows and columns over a grid of ranks: values gathered, partial sums scattered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.product import Perceptron, Weighted
from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, divides, only_passes, whole_pieces

T = TypeVar("T")


class ProductGrid(Strategy):
    """Two-dimensional matrix multiplication: a rank has the rows of P of all tokens that its neighbours along the
    Ulysses axis have, and the columns of all that those along the context axis have.

    Where rows are softmaxes, the ranks that have parts of the same rows first exchange their sums of exponentials.
    Values are gathered along the context axis, and partial sums, at the model's width, reduce-scattered along the
    other: a rank sends P_c - 1 + P_u - 1 times its tokens, in place of P_c P_u - 1 times: least where the grid is
    square. Backward, gradients are gathered where sums were scattered, values once more, and theirs reduce-scattered.

    A perceptron along the sequence has two such products, the first with its matrix transposed: tokens are gathered
    along the Ulysses axis and sums scattered along the other, so that its entries between are on one rank each. Of L
    tokens and S such entries a rank sends 2 ((P_u - 1) L + (P_c - 1) S) / P, and 2 (P - 1) S / P where all ranks add up
    all entries.
    """

    name: ClassVar[str] = "product-grid"
    title: ClassVar[str] = "a grid of ranks with rows and columns of the matrix each: values gathered, sums scattered"
    source: ClassVar[str] = (
        "van de Geijn & Watts 1997 (SUMMA), Concurrency 9(4), with the matrix staying in its place; "
        "Schatz et al. 2016, doi 10.1137/140993478"
    )
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Weighted, Perceptron)
    axes: ClassVar[tuple[str, ...]] = ("ulysses", "context")
    cuts_rows: ClassVar[bool] = True
    cuts_columns: ClassVar[bool] = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield only_passes(at, "forward", "train", "prefill")
        yield whole_pieces(
            at,
            at.context * at.ulysses * at.tensor,
            "{length} tokens do not divide over {context} x {ulysses} x {tensor} ranks",
        )
        reason = "{hidden} entries between two products do not divide over {context} x {ulysses} ranks"
        yield divides(at.hidden, at.context * at.ulysses, reason)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Weighted[T] | Perceptron[T]) -> T:
        rows, columns = axes["ulysses"], axes["context"]
        if isinstance(carry, Perceptron):
            hidden = self._product(ops, carry.first(), columns, rows)
            return self._product(ops, carry.second(ops, hidden), rows, columns)
        return self._product(ops, carry, rows, columns)

    def _product(self, ops: Vocabulary[T], carry: Weighted[T], rows: Axis, columns: Axis) -> T:
        """A rank's part of P V: values are gathered along ``columns``, sums scattered along ``rows``."""

        def forward(ops: Vocabulary[T], matrix: T, values: T) -> tuple[T, tuple[T, ...]]:
            partial = carry.times(ops, matrix, ops.all_gather(values, columns, 2))
            return ops.reduce_scatter(partial, rows, 2), (matrix, values)

        def backward(ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T, ...]:
            matrix, values = saved
            known = ops.all_gather(gradient, rows, 2)
            of_matrix, of_all = carry.back(ops, matrix, ops.all_gather(values, columns, 2), known)
            return of_matrix, ops.cast(ops.reduce_scatter(ops.cast(of_all, "gradient"), columns, 2), "model")

        result: T = ops.custom(forward, backward, carry.shared(ops, rows), carry.values)
        return result


product_grid = ProductGrid()
