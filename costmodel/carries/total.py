"""The sum carry: all tokens together are summed up in something small, which each of them then reads."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, TypeVar

from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class Sums(Carry[T]):
    """P is of low rank and sees all tokens, by one sum over them or by several, each of which needs those before."""

    kind: ClassVar[str] = "sum"

    @abstractmethod
    def over(self, ops: Vocabulary[T], line: Axis | None) -> T:
        """The mixed values [B, H, n, e] of this rank's tokens, summed over those of all ranks on a line."""

    def whole(self, ops: Vocabulary[T]) -> T:
        return self.over(ops, None)


class Total(Sums[T]):
    """One sum: Y = Q (K^T V), normalisers included."""

    @abstractmethod
    def partial(self, ops: Vocabulary[T]) -> tuple[T, ...]:
        """What this rank's tokens add to the sums."""

    @abstractmethod
    def finish(self, ops: Vocabulary[T], totals: tuple[T, ...]) -> T:
        """The mixed values [B, H, n, e], given the sums over all tokens."""

    def over(self, ops: Vocabulary[T], line: Axis | None) -> T:
        return self.finish(ops, tuple(total(ops, x, line) for x in self.partial(ops)))


def total(ops: Vocabulary[T], x: T, line: Axis | None) -> T:
    """The sum over the ranks on a line, or the tensor itself where the sequence is whole."""
    return x if line is None else ops.all_reduce(x, line)
