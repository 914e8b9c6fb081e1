"""The sum carry: all tokens together are summed up in something small, which each of them then reads."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, TypeVar

from costmodel.carry import Carry
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class Total(Carry[T]):
    """P is of low rank and sees all tokens: Y = Q (K^T V), normalisers included."""

    kind: ClassVar[str] = "sum"

    @abstractmethod
    def partial(self, ops: Vocabulary[T]) -> tuple[T, ...]:
        """What this rank's tokens add to the sums."""

    @abstractmethod
    def finish(self, ops: Vocabulary[T], totals: tuple[T, ...]) -> T:
        """The mixed values [B, H, n, e], given the sums over all tokens."""

    def whole(self, ops: Vocabulary[T]) -> T:
        return self.finish(ops, self.partial(ops))
