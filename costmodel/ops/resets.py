"""Tokens and pairs of packed documents: a document's first token, and pairs of tokens of two documents, left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.documents import Packed
from costmodel.ops.primitive import Entrywise

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


@dataclass(frozen=True)
class Reset(Entrywise):
    """Entries as they are, but ``fill`` at the first token of each document; 1 FLOP an entry.

    Attributes:
        axis: of the tokens.
        fill: ``"0"`` or ``"-inf"``.
    """

    packed: Packed
    axis: int
    fill: str = "0"

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return ops.apply(Reset(self.packed, self.axis), gradients[0])


@dataclass(frozen=True)
class Apart(Entrywise):
    """Pairs [..., N, C, C] of the tokens of chunks, 0 where they are of two documents; 1 FLOP a pair."""

    packed: Packed

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return ops.apply(self, gradients[0])
