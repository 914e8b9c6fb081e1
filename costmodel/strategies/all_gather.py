"""All-gather of keys and values: every rank then attends with its own queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.pairs import LatentPairs, Pairs
from costmodel.carry import Carry
from costmodel.dims import Dim, divide, is_number, minimum
from costmodel.masks import Mask
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_halves, only_fused, only_passes

T = TypeVar("T")


class AllGatherKV(Strategy):
    """Keys and values are gathered whole, and again in the backward pass; their gradients are reduce-scattered.

    The same bytes as a ring, in one go: nothing of it hides behind attention, and a rank holds all keys and values of
    one layer. Zigzag order balances a causal mask; each of a rank's two pieces sees one stretch of the keys, which
    serves a sliding window as well. Cached tokens, whose order no query asks for, are gathered before the new ones.
    """

    name: ClassVar[str] = "all-gather"
    title: ClassVar[str] = "all-gather of keys and values"
    source: ClassVar[str] = "Grattafiori et al. 2024 (Llama 3), arXiv 2407.21783, section 3.3.2"
    axes: ClassVar[tuple[str, ...]] = ("context",)
    layout: ClassVar[str] = "zigzag"
    documents: ClassVar[bool] = True
    extends: ClassVar[bool] = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield only_passes(at, "forward", "train", "prefill")
        yield only_fused(at)
        yield Requirement(
            at.causal or at.window is None, "a window on both sides is not one stretch of keys up to the query"
        )
        yield equal_halves(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Any) -> T:
        gathered = Gathered(axes["context"], carry, carry.cached(ops)[1])
        result: T = ops.custom(gathered.forward, gathered.backward, carry.q, carry.k, carry.v)
        return result


@dataclass(frozen=True)
class Piece:
    """A stretch of queries, the stretch of keys that they see, and the mask between them."""

    query: Dim
    queries: Dim
    key: Dim
    keys: Dim
    mask: Mask


class Gathered:
    """The algorithm, for one axis and mask.

    Args:
        cached: tokens before its new ones whose keys and values a rank has, at the beginning; all queries see them.
    """

    def __init__(self, axis: Axis, pairs: Pairs[Any], cached: Dim) -> None:
        self.axis, self.mask, self.scale, self.cached = axis, pairs.mask, pairs.scale, cached
        # Without a mask any order of the keys serves.
        self.order = "zigzag" if pairs.mask.causal or pairs.mask.documents is not None else "rank"

    def pieces(self, n: Dim, keys: Dim) -> list[Piece]:
        """The two zigzag pieces of n local queries under a causal mask; all of them without one, against all keys."""
        half, r, cached = divide(n, 2), self.axis.rank, self.axis.size * self.cached
        ends = cached + (r + 1) * half, cached + (2 * self.axis.size - r) * half
        own = tuple((end - half, end) for end in ends)
        if not self.mask.causal:
            return [Piece(0, n, 0, keys, self.mask.at(own, ((0, keys),)))]
        lengths = [end if self.mask.window is None else minimum(end, half + self.mask.window - 1) for end in ends]
        return [
            Piece(place * half, half, end - length, length, self.mask.at((own[place],), ((end - length, end),)))
            for place, (end, length) in enumerate(zip(ends, lengths, strict=True))
        ]

    def gather(self, ops: Vocabulary[T], *keys: T) -> tuple[T, ...]:
        """Of all ranks of the axis: cached ones, then new ones in the order of the tokens where a mask asks for it."""
        if is_number(self.cached, 0):
            return tuple(ops.all_gather(x, self.axis, 2, self.order) for x in keys)
        new = ops.shape(keys[0])[2] - self.cached
        past = [ops.all_gather(ops.slice(x, 2, 0, self.cached), self.axis, 2) for x in keys]
        own = [ops.all_gather(ops.slice(x, 2, self.cached, new), self.axis, 2, self.order) for x in keys]
        return tuple(ops.concat(parts, 2) for parts in zip(past, own, strict=True))

    def forward(self, ops: Vocabulary[T], q: T, k: T, v: T) -> tuple[T, tuple[T, ...]]:
        out, lse = self.attend(ops, q, *self.gather(ops, k, v))
        return out, (q, k, v, out, lse)

    def backward(self, ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T, ...]:
        q, k, v, out, lse = saved
        dq, *of_all = self.gradients(ops, (q, out, lse, gradient), self.gather(ops, k, v))
        return (dq, *self.scatter(ops, *of_all))

    def scatter(self, ops: Vocabulary[T], *gradients: T) -> list[T]:
        """Gradients of all keys, summed over ranks, of which each keeps its own."""
        return [ops.cast(ops.reduce_scatter(x, self.axis, 2, self.order), "model") for x in gradients]

    def attend(self, ops: Vocabulary[T], q: T, k: T, v: T) -> tuple[T, T]:
        """Output and log-sum-exp of queries over gathered keys and values, piece by piece."""
        parts = []
        for piece in self.pieces(ops.shape(q)[2], ops.shape(k)[2]):
            q_, k_, v_ = _cut(ops, piece, (q,), (k, v))
            parts.append(ops.attention(q_, k_, v_, piece.mask, self.scale))
        out, lse = (_joined(ops, [part[i] for part in parts]) for i in (0, 1))
        return out, lse

    def gradients(self, ops: Vocabulary[T], queries: tuple[T, ...], keys: tuple[T, ...]) -> tuple[T, T, T]:
        """Of queries, and of gathered keys and values; ``queries`` are q, out, lse and the output's gradient."""
        dk, dv = (ops.zeros_like(x, "gradient") for x in keys)
        parts = []
        for piece in self.pieces(ops.shape(queries[0])[2], ops.shape(keys[0])[2]):
            q, out, lse, gradient, k, v = _cut(ops, piece, queries, keys)
            dq, bk, bv = ops.attention_backward(q, k, v, out, lse, gradient, piece.mask, self.scale)
            parts.append(dq)
            dk, dv = ops.add_into(dk, bk, 2, piece.key), ops.add_into(dv, bv, 2, piece.key)
        return _joined(ops, parts), dk, dv


class AllGatherLatent(AllGatherKV):
    """The latent of MLA is gathered, and every rank expands it to all keys and values.

    A rank sends (r + d_r) / (H (d_n + d_r + e)) of what ``all-gather`` does, and expands P times as much.
    """

    name: ClassVar[str] = "all-gather-latent"
    title: ClassVar[str] = "all-gather of the latent of keys and values"
    source: ClassVar[str] = "latent: DeepSeek-V2, arXiv 2405.04434; gathered as in arXiv 2407.21783, section 3.3.2"
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (LatentPairs,)
    compressed: ClassVar[bool] = True
    extends: ClassVar[bool] = False

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: LatentPairs[T]) -> T:
        gathered = _GatheredLatent(axes["context"], carry, 0)
        given = carry.q, carry.k, carry.v, carry.w_uk, carry.w_uv
        result: T = ops.custom(gathered.forward, gathered.backward, *given)
        return result


class _GatheredLatent(Gathered):
    """The algorithm for a latent [B, n, r] and a shared part of the keys [B, 1, n, d_r]."""

    def gather(self, ops: Vocabulary[T], *keys: T) -> tuple[T, ...]:
        c, k_r = keys
        return ops.all_gather(c, self.axis, 1, "zigzag"), ops.all_gather(k_r, self.axis, 2, "zigzag")

    def forward(self, ops: Vocabulary[T], q: T, *latent: T) -> tuple[T, tuple[T, ...]]:
        c, k_r, *weights = latent
        out, lse = self.attend(ops, q, *LatentPairs.expand(ops, *self.gather(ops, c, k_r), *weights))
        return out, (q, *latent, out, lse)

    def backward(self, ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T, ...]:
        q, c, k_r, w_uk, w_uv, out, lse = saved
        all_c, all_k_r = self.gather(ops, c, k_r)
        given = all_c, all_k_r, w_uk, w_uv
        dq, dk, dv = self.gradients(ops, (q, out, lse, gradient), LatentPairs.expand(ops, *given))
        dc, dk_r, *of_weights = LatentPairs.shrink(ops, given, ops.cast(dk, "model"), ops.cast(dv, "model"))
        own = [
            ops.cast(ops.reduce_scatter(ops.cast(x, "gradient"), self.axis, dim, "zigzag"), "model")
            for x, dim in ((dc, 1), (dk_r, 2))
        ]
        return (dq, *own, *of_weights)


def _cut(ops: Vocabulary[T], piece: Piece, queries: Sequence[T], keys: Sequence[T]) -> tuple[T, ...]:
    """Views of the piece: first the tensors along queries, then those along keys."""
    return (
        *(ops.slice(x, 2, piece.query, piece.queries) for x in queries),
        *(ops.slice(x, 2, piece.key, piece.keys) for x in keys),
    )


def _joined(ops: Vocabulary[T], parts: Sequence[T]) -> T:
    return parts[0] if len(parts) == 1 else ops.concat(parts, 2)


all_gather = AllGatherKV()
all_gather_latent = AllGatherLatent()
