"""The halo carry: a token mixes with those at most so far away."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

from costmodel.carry import Carry
from costmodel.dims import Dim
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class Near(Carry[T]):
    """P is banded, so that ranks need rows of their neighbours only."""

    kind: ClassVar[str] = "halo"
    documents: ClassVar[bool] = True

    @abstractmethod
    def beside(self, ops: Vocabulary[T], line: Axis | None) -> T:
        """The mixed values [B, H, n, e], with the rows of neighbours on a line of ranks; zeros beyond its ends."""

    def whole(self, ops: Vocabulary[T]) -> T:
        return self.beside(ops, None)


class Neighbours(Near[T]):
    """All rows of neighbours are exchanged at once: row i of P is zero outside i - left ... i + right."""

    @property
    @abstractmethod
    def reach(self) -> tuple[Dim, Dim]:
        """How far a token sees to the left and to the right."""

    @abstractmethod
    def local(self, ops: Vocabulary[T], padded: Sequence[T]) -> T:
        """The mixed values [B, H, n, e], given ``seen`` with ``reach`` more rows on both sides of dimension 2."""

    def seen(self) -> tuple[T, ...]:
        """The streams of which a token sees those of its neighbours; all unless a mixer says otherwise."""
        return self.streams()

    def beside(self, ops: Vocabulary[T], line: Axis | None) -> T:
        left, right = self.reach
        return self.local(ops, [ops.halo(x, 2, left, right, line) for x in self.seen()])
