"""What a distributed algorithm says about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from costmodel.carries.pairs import Pairs
from costmodel.carry import Carry
from costmodel.dims import Dim
from costmodel.documents import MOST
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.registry import Registry

T = TypeVar("T")


@dataclass(frozen=True)
class Situation:
    """What a strategy is asked to do, for one candidate or an array of them.

    Attributes:
        carry: what the mixer hands over.
        length: tokens of the sequence, L, with those that it is padded with (of the cache, when decoding).
        tokens: those of them that are not padding.
        heads, kv_heads: of the whole model; ``kv_heads`` is 1 for a latent shared by all heads.
        data, tensor, ulysses, context: ranks along each axis of the mesh.
        window: keys that a query sees, or ``None``.
        reach: how many tokens away, to one side, a token sees at most, for the halo carry.
        lanes: sequences of their own into which a strided pattern parts the tokens; 0 where there is none.
        hidden: entries between the two products of a perceptron along the sequence; 0 where there is none.
        phase: ``forward``, ``train``, ``prefill`` or ``decode``.
        cached: tokens that came before those of a prefill.
        documents: that are packed into each sequence; 0 where it is one.
        different: those of them that a formula names each by itself, because their lengths are not one.
    """

    carry: type[Carry[Any]]
    length: Dim
    heads: Dim
    kv_heads: Dim
    causal: bool
    window: int | None
    kernel: str
    phase: str
    tokens: Dim = 0
    reach: Dim = 0
    lanes: Dim = 0
    hidden: Dim = 0
    cached: Dim = 0
    documents: int = 0
    different: int = 0
    batch: Dim = 1
    data: Dim = 1
    tensor: Dim = 1
    ulysses: Dim = 1
    context: Dim = 1


@dataclass(frozen=True)
class Requirement:
    """A condition of validity; ``reason`` may use the fields of the situation in braces.

    Attributes:
        pieces: where the condition is that the sequence can be cut into equal pieces, how many: a sequence that cannot
            is padded at its end until it can.
    """

    holds: Any
    reason: str
    pieces: Any = None


class Strategy(ABC):
    """One way of spreading a sequence over ranks.

    Attributes:
        carries: the kinds of carry it knows how to combine over ranks.
        axes: the axes of the mesh it uses, each of at least 2 ranks.
        layout: how tokens lie on ranks along the context axis: ``contiguous``, ``zigzag`` (rank r holds pieces r
            and 2 P - 1 - r of 2 P), or ``striped`` (rank r holds tokens r, r + P, r + 2 P, ...).
        inner_layout: the same along the Ulysses axis, whose ranks divide what the context axis leaves.
        groups: how many equal groups it cuts the heads of a rank into.
        cuts_rows: whether weights with a row for each token of the sequence are cut like the sequence.
        compressed: whether it takes keys and values as the latent that they come from.
        cuts_heads: whether it gives each rank along its Ulysses axis some of the heads.
        windowed: whether it is only for masks with a window.
        cuts_columns: whether a matrix over all tokens is cut like a grid of ranks, its rows along the context axis, and
            along the Ulysses axis the columns that belong to what each of the former has. So are other columns.
        extends: whether the keys that it spreads may begin with cached ones, of which every rank has an equal share.
        documents: whether it keeps packed documents apart.
        deals: whether sequences that are decoded are dealt out along the context axis: a rank has the tokens of some,
            and keeps their new keys and values, beside its part of the cache of all.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Pairs,)
    axes: ClassVar[tuple[str, ...]]
    layout: ClassVar[str] = "contiguous"
    inner_layout: ClassVar[str] = "contiguous"
    groups: ClassVar[int] = 1
    cuts_rows: ClassVar[bool] = False
    compressed: ClassVar[bool] = False
    cuts_heads: ClassVar[bool] = False
    windowed: ClassVar[bool] = False
    cuts_columns: ClassVar[bool] = False
    extends: ClassVar[bool] = False
    documents: ClassVar[bool] = False
    deals: ClassVar[bool] = False

    @abstractmethod
    def requirements(self, at: Situation) -> Iterator[Requirement]:
        """What must hold for the strategy to apply."""

    @abstractmethod
    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Any) -> T:
        """The mixed values [B, H, n, e] of this rank's tokens, over the whole sequence.

        Args:
            carry: of one of the kinds in ``carries``.
        """

    @property
    def layouts(self) -> dict[str, str]:
        """How tokens lie along each axis that they may be spread over."""
        return {"context": self.layout, "ulysses": self.inner_layout}

    @property
    def spread(self) -> tuple[object, ...]:
        """Where tokens are: alike for all strategies of a model's layers."""
        return self.axes, *self.layouts.values(), self.deals

    def refusal(self, at: Situation) -> str | None:
        """Why the strategy does not apply, or ``None``; for one candidate."""
        for requirement in (takes(self, at), *self.requirements(at)):
            if not np.all(requirement.holds):
                return requirement.reason.format(**vars(at))
        return None


def takes(strategy: Strategy, at: Situation) -> Requirement:
    """The strategy knows the mixer's carry."""
    known = " or ".join(carry.kind for carry in strategy.carries)
    return Requirement(issubclass(at.carry, strategy.carries), f"it combines {known}, not {at.carry.kind}")


def only_passes(at: Situation, *phases: str) -> Requirement:
    """The strategy is for these passes."""
    return Requirement(at.phase in phases, f"it is for {' and '.join(phases)}, not for {{phase}}")


def equal_stretches(at: Situation) -> Iterator[Requirement]:
    """A whole sequence at a time, of which each rank has an equal stretch."""
    yield only_passes(at, "forward", "train", "prefill")
    yield whole_pieces(at, at.context * at.tensor, "{length} tokens do not divide over {context} x {tensor} ranks")


def equal_halves(at: Situation) -> Requirement:
    """Each rank has an equal part of the sequence, which may be halved, as in zigzag order."""
    reason = "{length} tokens do not divide into 2 x {context} x {tensor} pieces"
    return whole_pieces(at, 2 * at.context * at.tensor, reason)


def equal_halves_on_grid(at: Situation) -> Requirement:
    """As ``equal_halves``, over both axes of a grid."""
    reason = "{length} tokens do not divide into 2 x {context} x {ulysses} x {tensor} pieces"
    return whole_pieces(at, 2 * at.context * at.ulysses * at.tensor, reason)


def equal_cache(at: Situation) -> Requirement:
    """When decoding, each rank has an equal part of the cache."""
    kept = at.length if at.window is None else np.minimum(at.length, at.window)
    return divides(
        kept, at.context, "the cache of {length} tokens, or of a window, does not divide over {context} ranks"
    )


def only_fused(at: Situation) -> Requirement:
    """The strategy needs partial results with their log-sum-exp."""
    return Requirement(
        at.kernel == "fused", "it merges partial results by their log-sum-exp, which only the fused kernel gives"
    )


def each_by_itself(at: Situation) -> Requirement:
    """Where equal documents are not alike on a rank, formulas name each by itself."""
    return Requirement(
        at.documents <= MOST, f"each of {{documents}} documents is counted by itself, and formulas take {MOST}"
    )


def divides(size: Dim, pieces: Dim, reason: str) -> Requirement:
    """``size`` can be cut into ``pieces`` equal parts."""
    return Requirement(np.equal(np.mod(size, pieces), 0), reason)


def whole_pieces(at: Situation, pieces: Dim, reason: str) -> Requirement:
    """The sequence can be cut into ``pieces`` equal parts, padded at its end if need be."""
    return replace(divides(at.length, pieces, reason), pieces=pieces)


strategies = Registry("strategy", "costmodel.strategies", Strategy, joined="costmodel.mixture:together")
