"""Attention within chunks of a sequence that was put in another order (Reformer; Kitaev et al., arXiv 2001.04451)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.dims import Dim, product, same
from costmodel.ops.fused_attention import softmax_backward_flops, softmax_flops
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor

#: A token's score for itself: far below that of any other token, so that it counts only where there is none.
ALONE = -1e4


@dataclass(frozen=True)
class SortedAttention(Primitive):
    """Softmax attention of each chunk over the chunk before it and itself, and its log-sum-exp; the first chunk is
    after the last. A token sees itself only where it sees no other.

    q, k [B, H, m, C, d], v [B, H, m, C, e], places [B, H, m, C] (of these tokens in the sequence) ->
    out [B, H, m, C, e], lse [B, H, m, C] (accumulation width). Of a causal mask no kernel knows beforehand which pairs
    it leaves: all 2 C of a query count as useful.

    Attributes:
        causal: whether a token sees only those at earlier places.
    """

    causal: bool
    scale: Dim
    lse_width: Dim

    family = "attention"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        q, k, v, places = inputs
        rows = q.shape[:4]
        if not all(same(m, n) for x in (k, v, places) for m, n in zip(rows, x.shape, strict=False)):
            raise ValueError(f"queries {q.shape}, keys {k.shape}, values {v.shape}, places {places.shape} do not fit")
        return Spec((*rows, v.shape[4]), q.width), Spec(rows, self.lse_width)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        q, _, v, _ = inputs
        return softmax_flops(_pairs(q), outputs[1].elements, q.shape[4], v.shape[4])


@dataclass(frozen=True)
class SortedAttentionBackward(Primitive):
    """Gradients of q, k and v of ``SortedAttention``, at accumulation width, as those of a token are added up.

    Inputs q, k, v, places, lse, delta [B, H, m, C] (the row sums of out * gradient), out's gradient. The log-sum-exp
    may be that of more keys than these, as of several orders.
    """

    causal: bool
    scale: Dim

    family = "attention_backward"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return tuple(Spec(t.shape, inputs[4].width) for t in inputs[:3])

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        q, _, v = inputs[:3]
        return softmax_backward_flops(_pairs(q), q.shape[4], v.shape[4], reading)


def _pairs(q: Tensor) -> Dim:
    """Queries, each with the keys of two chunks."""
    return product(q.shape[:4]) * 2 * q.shape[3]
