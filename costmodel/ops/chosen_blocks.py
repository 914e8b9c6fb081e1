"""Attention of each query over a few blocks of keys chosen for it (NSA, arXiv 2502.11089; MoBA, arXiv 2502.13189).

Keys and values are cut into blocks of b tokens, and each query sees S of them. A choice holds the query's own block, of
which it sees the keys up to itself, and all blocks before it where these are fewer than S - 1; what else it holds lies
in the future and is not seen. So how many pairs there are does not depend on what is chosen; nor does it where blocks
are single tokens, and the own one is chosen like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, clip, divide, floor_div, is_number, minimum, product, same
from costmodel.ops.fused_attention import softmax_backward_flops, softmax_flops, with_delta
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


@dataclass(frozen=True)
class Placed:
    """Queries among blocks of keys.

    Attributes:
        block: keys of a block.
        start: position of the first query; whole blocks of queries begin at a block, a single query anywhere.
    """

    block: Dim
    start: Dim

    def pairs(self, queries: Dim, chosen: Dim, reading: Reading) -> Dim:
        """Query-key pairs of one head: those seen; those in blocks that are not all future; or all of the choice.

        >>> [Placed(2, 0).pairs(6, 2, reading) for reading in (Reading.USEFUL, Reading.EXECUTED, Reading.DENSE)]
        [17, 20, 24]
        >>> Placed(2, 4).pairs(1, 2, Reading.USEFUL)
        3
        """
        if reading not in (Reading.USEFUL, Reading.EXECUTED):
            return queries * chosen * self.block
        own_too = reading is Reading.EXECUTED
        first = floor_div(self.start, self.block)
        if is_number(queries, 1):
            own = self.block if own_too else self.start - first * self.block + 1
            return minimum(first, chosen - 1) * self.block + own
        pieces = divide(queries, self.block)
        # Pieces of queries with fewer blocks before them than they may have.
        few = minimum(chosen - 1, pieces) if is_number(self.start, 0) else clip(chosen - 1 - first, 0, pieces)
        before = few * first + divide(few * (few - 1), 2) + (pieces - few) * (chosen - 1)
        own = self.block**2 if own_too else divide(self.block * (self.block + 1), 2)
        return before * self.block**2 + pieces * own


@dataclass(frozen=True)
class VisibleBlocks(Primitive):
    """Scores of blocks [..., n, blocks] for queries: -inf for those of the future, +inf for the query's own.

    So that the largest are the own block and the best before it; 1 FLOP a score, and no gradient.

    Attributes:
        always: how many of these are chosen whatever their scores: the own block, the one before it, the first of all.
    """

    placed: Placed
    always: int = 1

    family = "elementwise"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(inputs[0].shape, inputs[0].width, differentiable=False),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": outputs[0].elements}


def _widest(inputs: Sequence[Tensor]) -> Tensor:
    """Of keys and choices, what has more heads: once for each of them a query's blocks are fetched."""
    k, chosen = inputs[1], inputs[3]
    return k if is_number(chosen.shape[1], 1) else chosen


@dataclass(frozen=True)
class ChosenAttention(Primitive):
    """Softmax attention over chosen blocks, and its log-sum-exp; scores never leave the chip.

    q [B, H, n, d], k [B, H_kv, m, d], v [B, H_kv, m, e], chosen [B, H_c, n, S] (numbers of blocks; H_c divides H) ->
    out [B, H, n, e], lse [B, H, n] (accumulation width). FLOPs of a pair as in ``fused_attention.softmax_flops``.

    Attributes:
        by_block: how memory is read. Otherwise each query fetches its S blocks, once for all query heads that share
            both choice and keys. By block, each block fetches the queries that chose it, whose S partial results then
            are written, read again and merged: S (d + e) elements a query in place of S b (d + e).
        adding: how gradients of keys and values are summed; see ``ChosenAttentionBackward``.
    """

    placed: Placed
    scale: Dim
    lse_width: Dim
    by_block: bool = False
    adding: bool = False

    family = "attention"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        q, k, v, chosen = inputs
        fits = same(q.shape[3], k.shape[3]) and same(k.shape[2], v.shape[2]) and same(q.shape[2], chosen.shape[2])
        if not fits:
            raise ValueError(f"queries {q.shape}, keys {k.shape}, values {v.shape}, choices {chosen.shape} do not fit")
        return Spec((*q.shape[:3], v.shape[3]), q.width), Spec(q.shape[:3], self.lse_width)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        q, _, v, chosen = inputs
        pairs = product(q.shape[:2]) * self.placed.pairs(q.shape[2], chosen.shape[3], reading)
        rows, e = outputs[1].elements, v.shape[3]
        flops = softmax_flops(pairs, rows, q.shape[3], e)
        parts = rows * chosen.shape[3] if self.by_block else 0
        merging = {"elementwise": parts * (3 * e + 6), "special": 4 * parts}
        return {name: count + merging.get(name, 0) for name, count in flops.items()}

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        q, k, v, chosen = inputs
        out, lse = outputs
        times, written = chosen.shape[3], out.bytes + lse.bytes
        if self.by_block:
            partial = times * (out.elements + lse.elements) * self.lse_width
            return times * q.bytes + _held(k, v) + chosen.bytes + partial, written + partial
        return q.bytes + chosen.bytes + fetched(self.placed, inputs), written

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        given = ops.chosen_attention_backward(inputs, outputs, gradients[0], self)
        return (*given, None)


def _read_once(k: Tensor, v: Tensor) -> bool:
    """Whether values are a part of their keys, so that who fetches these has both."""
    return v.storage is k.storage and same(k.bytes, k.storage.bytes)


def fetched(placed: Placed, inputs: Sequence[Tensor]) -> Dim:
    """Bytes of keys and values that queries fetch, each its own blocks."""
    q, k, v, chosen = inputs[:4]
    heads = _widest(inputs).shape[1]
    width = k.shape[3] + (0 if _read_once(k, v) else v.shape[3])
    return q.shape[0] * heads * q.shape[2] * chosen.shape[3] * placed.block * width * k.width


def _held(k: Tensor, v: Tensor) -> Dim:
    """Bytes of all keys and values."""
    return k.bytes + (0 if _read_once(k, v) else v.bytes)


@dataclass(frozen=True)
class ChosenAttentionBackward(Primitive):
    """Gradients of q, k and v of ``ChosenAttention``; scores are computed again, in five products.

    Inputs q, k, v, chosen, out, lse, out's gradient. Two kernels: queries fetch their blocks, as forward, for their own
    gradient (unless ``by_block``); blocks fetch the S queries, gradients and sums that chose them, for theirs.

    Attributes:
        adding: one kernel instead: queries fetch their blocks once, and add these blocks' gradients to those in memory,
            at accumulation width, as kernels of sparse MLA do (tile-ai/tilelang examples/deepseek_v32). Less where many
            query heads share a choice of few keys.
    """

    placed: Placed
    scale: Dim
    by_block: bool = False
    adding: bool = False

    family = "attention_backward"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return tuple(Spec(t.shape, t.width) for t in inputs[:3])

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        q, _, v, chosen, out = inputs[:5]
        pairs = product(q.shape[:2]) * self.placed.pairs(q.shape[2], chosen.shape[3], reading)
        flops = with_delta(softmax_backward_flops(pairs, q.shape[3], v.shape[3], reading), out)
        added = q.elements * chosen.shape[3] if self.by_block else 0  # the partial gradients of a query
        return {**flops, "elementwise": flops["elementwise"] + added}

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        q, k, v, chosen, out, lse, gradient = inputs
        times, written = chosen.shape[3], sum(t.bytes for t in outputs)
        if self.adding:
            blocks = fetched(self.placed, inputs)
            added = blocks / k.width * lse.width
            own = q.bytes + chosen.bytes + out.bytes + lse.bytes + gradient.bytes
            return own + blocks + added, written + added
        visits = times * (q.bytes + gradient.bytes + 2 * lse.bytes)  # delta is as large as lse
        read = visits + _held(k, v) + chosen.bytes + out.bytes + gradient.bytes
        if self.by_block:
            partial = times * q.elements * lse.width
            return read + partial, written + partial
        return read + q.bytes + gradient.bytes + 2 * lse.bytes + fetched(self.placed, inputs), written
