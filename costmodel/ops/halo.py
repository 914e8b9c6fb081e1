"""Rows exchanged with the neighbours on a line of ranks: the sequence's own order, with no way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, is_number, minimum
from costmodel.ops.communication import Communication
from costmodel.ops.layout import Pad, replace
from costmodel.ops.primitive import Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


@dataclass(frozen=True)
class Edges(Communication):
    """What both exchanges of rows have in common.

    Attributes:
        dim: the dimension along the sequence.
        left, right: rows that a rank sees of the one before it, and of the one after it; one of them may be 0. A rank
            holds at least as many rows itself.
    """

    dim: int
    left: Dim
    right: Dim

    @property
    def sides(self) -> tuple[bool, bool]:
        """Whether there are rows from the rank before, and from the one after."""
        return not is_number(self.left, 0), not is_number(self.right, 0)

    @property
    def after(self) -> Dim:
        """1 if there is a rank after this one, else 0."""
        return minimum(self.axis.size - 1 - self.axis.rank, 1)

    @property
    def before(self) -> Dim:
        """1 if there is a rank before this one, else 0."""
        return minimum(self.axis.rank, 1)

    def steps(self, inputs: Sequence[Tensor]) -> Dim:
        return 1

    def busy_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        """A rank in the middle sends and receives on every side."""
        row = inputs[0].bytes / inputs[0].shape[self.dim]
        return row * (self.left + self.right)

    def rows(self, x: Tensor) -> tuple[Spec, ...]:
        """The rows of each side that there is, the left one first."""
        sizes = [size for size, there in zip((self.left, self.right), self.sides, strict=True) if there]
        return tuple(Spec(replace(x.shape, self.dim, size), x.width) for size in sizes)


@dataclass(frozen=True)
class Halo(Edges):
    """The last rows of the rank before, and the first rows of the rank after; zeros at the ends of the line.

    Gives a tensor for each side with rows.
    """

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return self.rows(inputs[0])

    def wire_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        row = inputs[0].bytes / inputs[0].shape[self.dim]
        return row * (self.left * self.after + self.right * self.before)

    def messages(self, inputs: Sequence[Tensor]) -> Dim:
        left, right = self.sides
        return left * self.after + right * self.before

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        size = ops.shape(inputs[0])[self.dim]
        found = ops.apply(HaloReturn(self.axis, self.dim, self.left, self.right), *gradients)
        starts = [start for start, there in zip((size - self.left, 0), self.sides, strict=True) if there]
        parts = [ops.apply(Pad(self.dim, start, size), x)[0] for start, x in zip(starts, found, strict=True)]
        return (parts[0] if len(parts) == 1 else ops.add(*parts),)


@dataclass(frozen=True)
class HaloReturn(Edges):
    """Gradients of a halo's rows, sent back to where the rows came from; zeros where nobody took any."""

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return tuple(Spec(t.shape, t.width) for t in inputs)

    def wire_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        row = inputs[0].bytes / inputs[0].shape[self.dim]
        return row * (self.left * self.before + self.right * self.after)

    def messages(self, inputs: Sequence[Tensor]) -> Dim:
        left, right = self.sides
        return left * self.before + right * self.after
