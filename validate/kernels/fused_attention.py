"""Fused attention on real tensors."""

from __future__ import annotations

from torch import Tensor

from costmodel.ops.fused_attention import Attention, AttentionBackward, DecodeAttention, Merge
from validate import attention
from validate.kernels.layout import entries
from validate.kernels.registry import Runner, runs


@runs(Attention)
@runs(DecodeAttention)
def fused_attention(primitive: Attention, ops: Runner, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return attention.forward((q, k, v), primitive.mask, float(primitive.scale), ops.flash)


@runs(AttentionBackward)
def fused_attention_backward(primitive: AttentionBackward, ops: Runner, *inputs: Tensor) -> attention.Triple:
    q, k, v, *known = inputs
    out, lse, gradient = known
    return attention.backward((q, k, v), (out, lse, gradient), primitive.mask, float(primitive.scale), ops.flash)


@runs(Merge)
def merge(
    primitive: Merge, ops: Runner, out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor
) -> tuple[Tensor, Tensor]:
    count = block_lse.shape[primitive.axis]
    attention.merge(entries(out, primitive, count), entries(lse, primitive, count), block_out, block_lse)
    return out, lse
