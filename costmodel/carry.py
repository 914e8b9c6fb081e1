"""Where mixers and strategies meet: what P(X) is like, and what crosses a cut of the sequence.

A mixer hands over a carry: the tensors along the sequence, and how they are mixed. A strategy takes it and knows
nothing else of the mixer. The kinds are in ``costmodel.carries``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar, Generic, Self, TypeVar

from costmodel.dims import Dim
from costmodel.documents import Documents, Packed
from costmodel.ops.mesh import Axis
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
        along: fields that are tensors along the sequence; ``of_heads``: that are weights, different from head to head.
            Each is one tensor, a tuple of them, or ``None``.
        aside: tensors of this rank's own tokens, such as gates, that only the mixer's ``finish`` reads; strategies
            leave them alone.
        documents: whether it can keep packed documents apart, if its mixer does too.
        packed: the documents that its tokens are of, where a mask does not say so.
    """

    kind: ClassVar[str] = "any carry"
    documents: ClassVar[bool] = False
    along: ClassVar[tuple[str, ...]] = ()
    of_heads: ClassVar[tuple[str, ...]] = ()
    aside: tuple[T, ...] = field(default=(), kw_only=True)
    packed: Packed | None = field(default=None, kw_only=True)

    def streams(self) -> tuple[T, ...]:
        """The tensors along the sequence, [B, heads, n, ...] each."""
        return self._held(self.along)

    @abstractmethod
    def whole(self, ops: Vocabulary[T]) -> T:
        """The mixed values [B, H, n, e], where the whole sequence is at hand."""

    def on(self, streams: Sequence[T], parameters: Sequence[T]) -> Self:
        """The same mixing of other tensors: other tokens, or some of the heads."""
        return replace(self, **self._with(self.along, streams), **self._with(self.of_heads, parameters))

    def parameters(self) -> tuple[T, ...]:
        """Weights that differ from head to head, [heads, ...] each."""
        return self._held(self.of_heads)

    def of_documents(self, documents: Documents | None) -> Self:
        """The same over a whole sequence of packed documents, if there are any."""
        return self if documents is None else replace(self, packed=Packed(documents))

    def on_line(self, ops: Vocabulary[T], axis: Axis) -> Self:
        """The same on one of the ranks that hold the sequence one after the other."""
        if self.packed is None:
            return self
        start = axis.rank * ops.shape(self.streams()[0])[2]
        return replace(self, packed=replace(self.packed, start=start))

    def cached(self, ops: Vocabulary[T]) -> tuple[Dim, ...]:
        """For each stream, with how many tokens it begins that came before this rank's new ones."""
        return (0,) * len(self.streams())

    def _held(self, names: Iterable[str]) -> tuple[T, ...]:
        """The tensors of some fields, one after the other."""
        fields = (getattr(self, name) for name in names)
        return tuple(tensor for held in fields if held is not None for tensor in _several(held))

    def _with(self, names: Iterable[str], tensors: Sequence[T]) -> dict[str, Any]:
        """Those fields with as many other tensors."""
        left, found = [*tensors], dict[str, Any]()
        for name in names:
            held = getattr(self, name)
            if held is not None:
                count = len(_several(held))
                own, left = tuple(left[:count]), left[count:]
                found[name] = own if isinstance(held, tuple) else own[0]
        if left:
            raise ValueError(f"{len(left)} tensors more than {type(self).__name__} holds")
        return found


def _several(held: Any) -> tuple[Any, ...]:
    return held if isinstance(held, tuple) else (held,)
