"""Fused softmax attention: scores never leave the chip (FlashAttention; Dao et al., arXiv 2205.14135, 2307.08691)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, divide, floor_div, maximum, minimum, product, same
from costmodel.expression import lift
from costmodel.masks import Columns, Mask, Tile
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


def scored_pairs(mask: Mask, q: Tensor, k: Tensor, reading: Reading, tile: Tile) -> Dim:
    """Query-key pairs over batch and heads, as the reading counts them. q is [B, H, n_q, d], k [B, H_kv, n_k, d]."""
    n_q, n_k = q.shape[2], k.shape[2]
    if reading is Reading.USEFUL:
        pairs = mask.useful_pairs(n_q, n_k)
    elif reading is Reading.EXECUTED:
        pairs = mask.executed_pairs(n_q, n_k, tile)
    else:
        pairs = mask.dense_pairs(n_q, n_k)
    return product(q.shape[:2]) * pairs


def tiles_of(rows: Tensor, tile: Tile) -> Dim:
    """Tiles along the rows of [B, H, n, d], of which each head has at least one; none of a kernel without."""
    if isinstance(tile, Columns):
        return 0
    return lift(product(rows.shape[:2]) * maximum(rows.shape[2], tile)) / tile


def softmax_flops(pairs: Dim, rows: Dim, d: Dim, e: Dim) -> Flops:
    """Of attention over so many pairs: 2 (d + e) each in the two products; scale and subtract; maximum and sum; one
    exponential. Each of the rows of e outputs is divided by its sum, whose logarithm is taken.
    """
    return {
        "contraction": 2 * pairs * (d + e),
        "elementwise": 2 * pairs + rows * (e + 1),
        "reduction": 2 * pairs,
        "special": pairs + rows,
    }


def softmax_backward_flops(pairs: Dim, d: Dim, e: Dim, reading: Reading) -> Flops:
    """Of its backward pass, scores computed again, when the row sums of out * gradient (delta) are known: five
    products; scale, - lse, - delta, * p; one exponential.
    """
    products = 4 * (d + e) if reading is Reading.MODEL else 6 * d + 4 * e
    return {"contraction": pairs * products, "elementwise": 4 * pairs, "special": pairs}


def with_delta(flops: Flops, out: Tensor) -> Flops:
    """With those of delta, the row sums of out * gradient."""
    return {**flops, "elementwise": flops["elementwise"] + out.elements, "reduction": out.elements}


def reread(mask: Mask, qkv: Sequence[Tensor], tile: Tile) -> Dim:
    """Bytes of keys and values that blocks of queries read, each its own: as many queries as torch's kernel for a CPU
    takes at once, 32, from 192 on 64, and from 768 on 256 (aten/src/ATen/native/cpu/FlashAttentionKernel.cpp).
    """
    q, k, v = qkv
    n = q.shape[2]
    at_once = 32 + 32 * minimum(floor_div(n, 192), 1) + 192 * minimum(floor_div(n, 768), 1)
    pairs = scored_pairs(mask, q, k, Reading.EXECUTED, tile)
    return divide(pairs * (k.shape[3] * k.width + v.shape[3] * v.width), at_once)


def on_core(mask: Mask, qkv: Sequence[Tensor], result: Tensor, tile: Tile) -> dict[str, Dim]:
    """Overheads on a CPU's core: keys and values that are brought to its products once and again; scores whose softmax
    no product hides; one more kernel, whose result is merged, for keys before those of a causal square.
    """
    q, k, v = qkv
    before = minimum(maximum(k.shape[2] - q.shape[2], 0), 1) if mask.causal else 0
    scores = scored_pairs(mask, q, k, Reading.EXECUTED, tile)
    moved = {"right": k.bytes + v.bytes, "again": reread(mask, qkv, tile), "result": result.bytes}
    return {**moved, "scores": scores, "line": before}


@dataclass(frozen=True)
class Attention(Primitive):
    """softmax(scale q k^T + mask) v and its log-sum-exp.

    q [B, H, n_q, d], k [B, H_kv, n_k, d], v [B, H_kv, n_k, e] -> out [B, H, n_q, e], lse [B, H, n_q] (accumulation
    width). Every operand crosses device memory once: keys and values that a query tile reads again come from cache, as
    do values that are a part of their keys (absorbed MLA).
    """

    mask: Mask
    scale: Dim
    tile: Tile
    lse_width: Dim

    family = "attention"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        q, k, v = inputs
        if not same(q.shape[3], k.shape[3]) or not same(k.shape[2], v.shape[2]):
            raise ValueError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not fit together")
        return Spec((*q.shape[:3], v.shape[3]), q.width), Spec(q.shape[:3], self.lse_width)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        q, k, v = inputs
        pairs = scored_pairs(self.mask, q, k, reading, self.tile)
        return softmax_flops(pairs, outputs[1].elements, q.shape[3], v.shape[3])

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        read, written = super().traffic(inputs, outputs)
        _, k, v = inputs
        within = v.storage is k.storage and same(k.bytes, k.storage.bytes)  # keys are all there is in that memory
        return (read - v.bytes if within else read), written

    def front(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Dim:
        q, _, v = inputs
        return 2 * outputs[1].elements * (q.shape[3] + v.shape[3])

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return on_core(self.mask, inputs, outputs[0], self.tile)

    @property
    def uneven(self) -> bool:
        return self.mask.causal

    def tiles(self, inputs: Sequence[Tensor]) -> Dim:
        return tiles_of(inputs[0], self.tile)

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        q, k, v = inputs
        out, lse = outputs
        return ops.attention_backward(q, k, v, out, lse, gradients[0], self.mask, self.scale)


@dataclass(frozen=True)
class DecodeAttention(Attention):
    """Attention of one query for each sequence and head, whose kernels cut the keys over the device instead."""

    family = "attention_decode"

    def tiles(self, inputs: Sequence[Tensor]) -> Dim:
        return 0


@dataclass(frozen=True)
class AttentionBackward(Primitive):
    """Gradients of q, k and v from the output, its log-sum-exp and the output's gradient, by recomputing the scores.

    Inputs q, k, v, out, lse, out's gradient. Five products: q k^T again (2 d a pair), g v^T and p^T g (2 e each),
    ds k and ds^T q (2 d each); FlashAttention-2, algorithm 2. The log-sum-exp may be that of more keys than these, as
    in a ring.
    """

    mask: Mask
    scale: Dim
    tile: Tile

    family = "attention_backward"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return tuple(Spec(t.shape, t.width) for t in inputs[:3])

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        q, k, v = inputs[:3]
        pairs = scored_pairs(self.mask, q, k, reading, self.tile)
        return with_delta(softmax_backward_flops(pairs, q.shape[3], v.shape[3], reading), inputs[3])

    def front(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Dim:
        q, _, v = inputs[:3]
        return product(q.shape[:3]) * (6 * q.shape[3] + 4 * v.shape[3])

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return on_core(self.mask, inputs[:3], outputs[0], self.tile)

    @property
    def uneven(self) -> bool:
        return self.mask.causal

    def tiles(self, inputs: Sequence[Tensor]) -> Dim:
        q, k, _ = inputs[:3]
        return lift(tiles_of(k, self.tile)) * q.shape[1] / k.shape[1]  # tiles of keys, for every head of queries


@dataclass(frozen=True)
class Merge(Primitive):
    """Partial attention over more keys taken into a running output, in place, along a slice of the queries or heads.

    Inputs: out [B, H, n, e] and lse [B, H, n] at accumulation width, block_out [B, H, m, e], block_lse [B, H, m].
    lse' = log(exp(lse) + exp(block_lse)) and out' = exp(lse - lse') out + exp(block_lse - lse') block_out, the
    associative and commutative combination of the pairs carry (Milakov & Gimelshein, arXiv 1805.02867).
    """

    axis: int
    start: Dim
    step: Dim = 1

    family = "elementwise"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        out, lse = inputs[:2]
        return Spec(out.shape, out.width, view_of=0), Spec(lse.shape, lse.width, view_of=1)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        block, rows = inputs[2].elements, inputs[3].elements
        return {"elementwise": 3 * block + 6 * rows, "special": 4 * rows}

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        out, lse, block, block_lse = inputs
        touched = block.elements * out.width + block_lse.elements * lse.width
        return touched + block.bytes + block_lse.bytes, touched
