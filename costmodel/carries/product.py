"""Product carries: a matrix over all tokens, of which each token knows its row, times values; or two such products."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from costmodel.carries.total import Total
from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


@dataclass(frozen=True)
class Product(Carry[T]):
    """P V of values [B, H, n, e]: a row of P does not depend on other tokens, but the product needs all values.

    Attributes:
        matrix: rows of P for this rank's tokens: ``"ij"`` [n, L], the same for all heads, ``"ji"`` transposed,
            ``"hij"`` [H, n, L], or ``"bhij"`` [B, H, n, L].
        axes: which of these.
    """

    matrix: T
    values: T
    axes: str

    kind: ClassVar[str] = "values"

    def streams(self) -> tuple[T, ...]:
        return (self.values, self.matrix) if self.axes == "bhij" else (self.values,)

    def parameters(self) -> tuple[T, ...]:
        return (self.matrix,) if self.axes == "hij" else ()

    def on(self, streams: Sequence[T], parameters: Sequence[T]) -> Product[T]:
        values, *matrix = (*streams, *parameters)
        return replace(self, values=values, matrix=matrix[0] if matrix else self.matrix)

    def whole(self, ops: Vocabulary[T]) -> T:
        return self.times(ops, self.matrix, self.values)

    def times(self, ops: Vocabulary[T], matrix: T, values: T) -> T:
        """Columns of P by the values [B, H, m, e] that belong to them: [B, H, n, e]."""
        return ops.contract(f"{self.axes},bhje->bhie", matrix, values)

    def back(self, ops: Vocabulary[T], matrix: T, values: T, gradient: T) -> tuple[T, T]:
        """The gradients of both, given the product's [B, H, n, e]."""
        of_matrix = ops.contract(f"bhie,bhje->{self.axes}", gradient, values)
        return of_matrix, ops.contract(f"{self.axes},bhie->bhje", matrix, gradient)


@dataclass(frozen=True)
class Weighted(Product[T]):
    """P is made of weights alone: ranks may cut it by columns as well."""

    kind: ClassVar[str] = "values of a matrix of weights"

    def shared(self, ops: Vocabulary[T], columns: Axis) -> T:
        """This rank's part of P, of whose rows other ranks along ``columns`` have the other entries."""
        return self.matrix


@dataclass(frozen=True)
class Scores(Weighted[T]):
    """The matrix holds scores, of whose rows P is the softmax; each rank has some of the columns."""

    def shared(self, ops: Vocabulary[T], columns: Axis) -> T:
        """The sums of exponentials are exchanged, as logarithms, which is little beside values."""
        last = len(ops.shape(self.matrix)) - 1

        def summed(ops: Vocabulary[Any], scores: Any) -> Any:
            scores = ops.cast(scores, "accumulate")
            top = ops.max(scores, (last,))
            return ops.add(ops.map("log", ops.sum(ops.map("exp", ops.map("sub", scores, top)), (last,))), top)

        def divided(ops: Vocabulary[Any], scores: Any, sums: Any) -> Any:
            return ops.map("exp", ops.map("sub", scores, summed(ops, sums)))

        own = ops.fused("sums of exponentials", summed, self.matrix)
        result: T = ops.fused("softmax", divided, self.matrix, ops.all_gather(own, columns, last))
        return result


@dataclass(frozen=True)
class Perceptron(Total[T]):
    """Two products with weights that have a row for each token, and a function of each entry between them.

    The entries between are a sum over all tokens; where ranks have some of its columns each, they have other entries.

    Attributes:
        x: [B, H, n, e].
        inward, outward: [n, S], of this rank's tokens and entries between.
    """

    along: ClassVar[tuple[str, ...]] = ("x",)
    kind: ClassVar[str] = "sum between two products with weights"

    x: T
    inward: T
    outward: T

    @abstractmethod
    def between(self, ops: Vocabulary[T], hidden: T) -> T:
        """The function of entries [B, H, S, e]."""

    def first(self) -> Weighted[T]:
        """The product that makes the entries between; of all tokens, or what the rank's tokens add to it."""
        return Weighted(self.inward, self.x, "ji")

    def second(self, ops: Vocabulary[T], hidden: T) -> Weighted[T]:
        """The product that takes them back to tokens, given the sums."""
        return Weighted(self.outward, self.between(ops, hidden), "ij")

    def partial(self, ops: Vocabulary[T]) -> tuple[T, ...]:
        return (self.first().whole(ops),)

    def finish(self, ops: Vocabulary[T], totals: tuple[T, ...]) -> T:
        return self.second(ops, totals[0]).whole(ops)
