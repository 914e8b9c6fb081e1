"""Where mixers and strategies meet: what P(X) is like, and what crosses a cut of the sequence.

A mixer hands over a carry: the tensors along the sequence, and how they are mixed. A strategy takes it and knows
nothing else of the mixer. The kinds are in ``costmodel.carries``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Generic, Self, TypeVar

from costmodel.dims import Dim
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class Structure(Enum):
    """The structure of the token-mixing matrix P(X)."""

    DENSE = "dense, data-dependent"
    STATIC = "dense, static"
    BANDED = "banded"
    SPARSE = "block-sparse, selected"
    LOW_RANK = "low-rank"
    SEMISEPARABLE = "semiseparable (causal state)"
    HIERARCHICAL = "hierarchical (causal states of many lengths)"
    TOEPLITZ = "Toeplitz"
    RECURRENT = "nonlinear recurrence: no matrix"


@dataclass(frozen=True)
class Carry(ABC, Generic[T]):
    """How the tokens of a sequence are mixed, independently for each head (or channel).

    Attributes:
        kind: what crosses a cut, in a few words.
        aside: tensors of this rank's own tokens, such as gates, that only the mixer's ``finish`` reads; strategies
            leave them alone.
    """

    kind: ClassVar[str] = "any carry"
    aside: tuple[T, ...] = field(default=(), kw_only=True)

    @abstractmethod
    def streams(self) -> tuple[T, ...]:
        """The tensors along the sequence, [B, heads, n, ...] each."""

    @abstractmethod
    def whole(self, ops: Vocabulary[T]) -> T:
        """The mixed values [B, H, n, e], where the whole sequence is at hand."""

    @abstractmethod
    def on(self, streams: Sequence[T], parameters: Sequence[T]) -> Self:
        """The same mixing of other tensors: other tokens, or some of the heads."""

    def parameters(self) -> tuple[T, ...]:
        """Weights that differ from head to head, [heads, ...] each."""
        return ()

    def cached(self, ops: Vocabulary[T]) -> tuple[Dim, ...]:
        """For each stream, with how many tokens it begins that came before this rank's new ones."""
        return (0,) * len(self.streams())
