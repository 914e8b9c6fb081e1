"""Pairs of tokens within a chunk, weighted by the decay between them: what all chunked recurrences are made of.

With G the running sum of the logarithms of decay, a pair is q_i^T diag(exp(G_i - G_j)) k_j for j <= i. One decay a head
is a factor of the finished product. One a channel must be in the product, where exp(G) and exp(-G) apart would overflow
what exp(G_i - G_j) <= 1 does not. Chunks are therefore cut once more (Yang et al. 2023, arXiv 2312.06635, section 4.3;
flash-linear-attention ops/gla/chunk.py, ops/kda/chunk_intra.py): from a piece to those before it, both sides are scaled
relative to its beginning, with exponents of at most 0, and multiplied as matrices; within a piece, each pair has its
own difference, which is no matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from costmodel.dims import Dim, divide, is_number, same
from costmodel.documents import Packed
from costmodel.masks import Mask
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.resets import apart

T = TypeVar("T")

CAUSAL = Mask(causal=True)

#: Tokens of a piece, as in flash-linear-attention, where they divide the chunk; otherwise the most that do.
PIECE = 16


@dataclass(frozen=True)
class Decay(Generic[T]):
    """Sums of the logarithms of decay within chunks, [B, H, N, C, 1 or d] each.

    Attributes:
        running: from the chunk's start up to each token.
        reading: up to the token before, where queries read the state before their token; pairs of a token with itself
            are then left out.
        whole: of what number of tokens pieces are divisors, where C is a multiple of it.
    """

    running: T
    reading: T | None = None
    whole: Dim | None = None

    @property
    def tensors(self) -> tuple[T, ...]:
        """The sums; last those up to what a query reads."""
        return (self.running,) if self.reading is None else (self.running, self.reading)

    @property
    def upto(self) -> T:
        """Sums up to what a query reads."""
        return self.tensors[-1]

    def piece(self, chunk: Dim) -> Dim:
        """Tokens of a piece of a chunk."""
        size = chunk if self.whole is None else self.whole
        return math.gcd(int(size), PIECE)

    @property
    def strict(self) -> bool:
        """Whether pairs of a token with itself are left out."""
        return self.reading is not None


def in_chunks(ops: Vocabulary[T], x: T, chunk: Dim) -> T:
    """Chunks [B, H, N, C, ...] of tokens [B, H, n, ...]."""
    b, h, n, *others = ops.shape(x)
    return ops.reshape(x, (b, h, divide(n, chunk), chunk, *others))


def spread(ops: Vocabulary[T], x: T, heads: Dim) -> T:
    """Tensors [B, H_kv, ...] that the heads of a group share, for each of them."""
    groups = ops.shape(x)[1]
    return x if same(groups, heads) else ops.repeat(x, 1, divide(heads, groups))


def decayed_pairs(ops: Vocabulary[T], q: T, k: T, decay: Decay[T] | None, packed: Packed | None = None) -> T:
    """Weighted products [B, H, N, C, C] of q and k [B, H or H_kv, N, C, d], 0 for j > i and for other documents."""
    (pairs,) = all_pairs(ops, (q,), (k,), decay, packed)
    return pairs


def all_pairs(
    ops: Vocabulary[T], queries: Sequence[T], keys: Sequence[T], decay: Decay[T] | None, packed: Packed | None = None
) -> tuple[T, ...]:
    """``decayed_pairs`` of each of the queries with each of the keys; with a decay for each channel, in one kernel."""
    if decay is None:
        scores = (ops.masked(_scores(ops, q, k), CAUSAL) for q in queries for k in keys)
        return tuple(apart(ops, pairs, packed) for pairs in scores)
    _, h, _, _, d = ops.shape(decay.running)
    if is_number(d, 1):
        weights = apart(ops, decays_of_pairs(ops, decay), packed)
        return tuple(ops.mul(spread(ops, _scores(ops, q, k), h), weights) for q in queries for k in keys)
    reading = () if decay.reading is None else (decay.reading,)

    def body(ops: Vocabulary[Any], running: Any, *others: Any) -> tuple[Any, ...]:
        sums = replace(decay, running=running, reading=others[0] if reading else None)
        rows = others[len(reading) :]
        pairs = _by_channel(ops, rows[: len(queries)], rows[len(queries) :], sums)
        return tuple(apart(ops, x, packed) for x in pairs)

    found: tuple[T, ...] = ops.fused("pairs with decay", body, decay.running, *reading, *queries, *keys, family="scan")
    return found


def decays_of_pairs(ops: Vocabulary[T], decay: Decay[T]) -> T:
    """exp(G_i - G_j) [B, H, N, C, C], 0 for j > i, of one decay a head."""
    b, h, n, c, _ = ops.shape(decay.running)
    apart = ops.map("sub", decay.upto, ops.reshape(decay.running, (b, h, n, 1, c)))
    return ops.map("exp", ops.masked(apart, CAUSAL, "-inf", decay.strict))


def _scores(ops: Vocabulary[T], q: T, k: T) -> T:
    return ops.contract("bhnid,bhnjd->bhnij", q, k, CAUSAL, "ij")


def _by_channel(ops: Vocabulary[T], queries: Sequence[T], keys: Sequence[T], decay: Decay[T]) -> tuple[T, ...]:
    """The pairs of ``all_pairs`` with one decay a channel, piece by piece."""
    b, h, n, c, d = ops.shape(decay.running)
    size = decay.piece(c)
    count = divide(c, size)

    def cut(x: T) -> T:
        return ops.reshape(x, (b, h, n, count, size, d))

    queries, keys = [cut(q) for q in queries], [cut(k) for k in keys]
    pieces = Decay(cut(decay.running), None if decay.reading is None else cut(decay.reading))
    pairs = _of_pieces(ops, queries, keys, pieces)
    if decay.whole is not None or not is_number(count, 1):
        ones = ops.ones((count, count), "accumulate")
        unit = ops.map("sub", ops.masked(ones, CAUSAL), ops.masked(ones, CAUSAL, strict=True))
        placed = (ops.mul(ops.reshape(x, (b, h, n, size, size, count, 1)), unit) for x in pairs)
        both = zip(_between_pieces(ops, queries, keys, pieces), placed, strict=True)
        pairs = [ops.permute(ops.add(x, y), (0, 1, 2, 5, 3, 6, 4)) for x, y in both]
    return tuple(ops.reshape(x, (b, h, n, c, c)) for x in pairs)


def _of_pieces(ops: Vocabulary[T], queries: Sequence[T], keys: Sequence[T], decay: Decay[T]) -> list[T]:
    """Pairs within pieces [B, H, N, S, S, M], of queries and keys [B, H, N, M, S, d]."""
    *outer, size, d = ops.shape(decay.running)

    def rows(x: T, shape: tuple[Dim, Dim]) -> T:
        return ops.reshape(ops.permute(x, (0, 1, 2, 3, 5, 4)), (*outer, d, *shape))

    apart = ops.map("sub", rows(decay.upto, (size, 1)), rows(decay.running, (1, size)))
    weights = ops.map("exp", ops.masked(apart, CAUSAL, "-inf", decay.strict))

    def product(q: T, k: T) -> T:
        weighted = ops.mul(ops.mul(weights, rows(q, (size, 1))), rows(k, (1, size)))
        pairs = ops.cast(ops.reshape(ops.sum(weighted, (4,)), (*outer, size, size)), ops.precision(q))
        return ops.permute(pairs, (0, 1, 2, 4, 5, 3))

    return [product(q, k) for q in queries for k in keys]


def _between_pieces(ops: Vocabulary[T], queries: Sequence[T], keys: Sequence[T], decay: Decay[T]) -> list[T]:
    """Pairs of each piece's queries with the keys of those before it [B, H, N, S, S, M, M].

    Both sides are scaled relative to the end of the piece before the query's.
    """
    b, h, n, count, size, d = ops.shape(decay.running)
    others = count - 1

    def later(x: T) -> T:
        return ops.slice(x, 3, 1, others)

    def columns(x: T, rows: Dim, shape: tuple[Dim, Dim]) -> T:
        return ops.reshape(ops.permute(x, (0, 1, 2, 4, 5, 3)), (b, h, n, rows, d, *shape))

    earlier = ops.slice(decay.running, 3, 0, others)
    ends = ops.slice(earlier, 4, size - 1, 1)
    early = ops.map("exp", ops.map("sub", later(decay.upto), ends))
    apart = ops.map("sub", columns(ends, 1, (others, 1)), columns(earlier, size, (1, others)))
    late = ops.map("exp", ops.masked(apart, CAUSAL, "-inf"))
    reads = [ops.mul(later(q), early) for q in queries]
    kept = [ops.mul(columns(ops.slice(k, 3, 0, others), size, (1, others)), late) for k in keys]
    products = (ops.contract("bhnxid,bhnjdxy->bhnijxy", q, k, CAUSAL, "xy") for q in reads for k in kept)
    return [ops.pad(ops.pad(x, 5, 1, count), 6, 0, count) for x in products]
