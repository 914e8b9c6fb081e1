"""Ulysses: heads for sequence, by all-to-all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from costmodel.carry import Carry
from costmodel.dims import Dim, divide, is_number
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategies.ring import ring
from costmodel.strategies.whole import whole
from costmodel.strategies.zigzag import zigzag
from costmodel.strategy import Requirement, Situation, Strategy, divides, only_passes, whole_pieces

T = TypeVar("T")


class Ulysses(Strategy):
    """Each rank gets some heads over the whole sequence, attends, and gives the result back.

    Bytes fall with the number of ranks, any mask and kernel serve, and causal work is balanced; but it cuts heads, so
    it goes no further than there are key-value heads. What the ranks of one such group hold together may itself be
    cut: ``inner`` is the strategy inside. Cached tokens are kept by sequence, as decoding takes them, and change hands
    like new ones.
    """

    name: ClassVar[str] = "ulysses"
    title: ClassVar[str] = "Ulysses: all-to-all of heads for sequence"
    source: ClassVar[str] = "Jacobs et al. 2023, arXiv 2309.14509"
    axes: ClassVar[tuple[str, ...]] = ("ulysses",)
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Carry,)
    cuts_heads: ClassVar[bool] = True
    documents: ClassVar[bool] = True
    extends: ClassVar[bool] = True
    inner: ClassVar[Strategy] = whole

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield only_passes(at, "forward", "train", "prefill")
        yield from self.inner.requirements(at)
        cut = at.tensor * at.ulysses
        yield divides(at.heads, cut, "{heads} heads cannot be cut {tensor} x {ulysses} ways")
        yield Requirement(
            np.equal(np.mod(at.kv_heads, cut), 0),
            "{kv_heads} KV heads cannot be cut {tensor} x {ulysses} ways without repeating them: wire bytes would grow",
        )
        pieces = at.context * at.ulysses * at.tensor * (2 if self.layout == "zigzag" else 1)
        yield whole_pieces(at, pieces, "{length} tokens do not divide over {context} x {ulysses} x {tensor} ranks")

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Carry[T]) -> T:
        axis = axes["ulysses"]
        streams = [_exchanged(ops, x, axis, n) for x, n in zip(carry.streams(), carry.cached(ops), strict=True)]
        parameters = [_own_heads(ops, x, axis) for x in carry.parameters()]
        mixed = self.inner.apply(ops, axes, carry.on(streams, parameters))
        return ops.all_to_all(mixed, axis, split=2, concat=1)


def _exchanged(ops: Vocabulary[T], x: T, axis: Axis, cached: Dim = 0) -> T:
    """[B, heads, n, ...]: some heads over the whole sequence, cached tokens first; a head that all share, as it is."""
    if not is_number(cached, 0):
        parts = (0, cached), (cached, ops.shape(x)[2] - cached)
        return ops.concat([_exchanged(ops, ops.slice(x, 2, start, size), axis) for start, size in parts], 2)
    if is_number(ops.shape(x)[1], 1):
        return ops.all_gather(x, axis, 2)
    return ops.all_to_all(x, axis, split=1, concat=2)


def _own_heads(ops: Vocabulary[T], x: T, axis: Axis) -> T:
    """The part of a weight [heads, ...] that belongs to this rank's heads; one that all heads share, as it is."""
    if is_number(ops.shape(x)[0], 1):
        return x
    heads = divide(ops.shape(x)[0], axis.size)
    return ops.slice(x, 0, axis.rank * heads, heads)


class UlyssesRing(Ulysses):
    """The grid of both: Ulysses among near ranks, a ring among the groups."""

    name: ClassVar[str] = "ulysses-ring"
    title: ClassVar[str] = "USP: Ulysses x ring, contiguous blocks"
    source: ClassVar[str] = "Fang & Zhao 2024, arXiv 2405.07719"
    axes: ClassVar[tuple[str, ...]] = ("ulysses", "context")
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = ring.carries
    inner: ClassVar[Strategy] = ring


class UlyssesZigzag(Ulysses):
    """The grid of both, balanced for causal masks."""

    name: ClassVar[str] = "ulysses-zigzag"
    title: ClassVar[str] = "USP: Ulysses x zigzag ring"
    source: ClassVar[str] = "Fang & Zhao 2024, arXiv 2405.07719"
    axes: ClassVar[tuple[str, ...]] = ("ulysses", "context")
    layout: ClassVar[str] = "zigzag"
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = zigzag.carries
    inner: ClassVar[Strategy] = zigzag


ulysses = Ulysses()
ulysses_ring = UlyssesRing()
ulysses_zigzag = UlyssesZigzag()
