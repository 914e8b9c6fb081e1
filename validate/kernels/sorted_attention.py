"""Attention within sorted chunks on real tensors, with the scores in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from costmodel.ops.sorted_attention import ALONE, SortedAttention, SortedAttentionBackward
from validate.kernels.registry import Runner, runs


@runs(SortedAttention)
def sorted_attention(
    primitive: SortedAttention, ops: Runner, q: Tensor, k: Tensor, v: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    scores = _scores(primitive, q, k, places)
    lse = scores.logsumexp(-1)
    return (torch.exp(scores - lse[..., None]) @ _with_before(_wide(v))).to(q.dtype), lse


@runs(SortedAttentionBackward)
def sorted_attention_backward(
    primitive: SortedAttentionBackward, ops: Runner, *inputs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, places, lse, delta, gradient = inputs
    g, keys = _wide(gradient), _with_before(_wide(k))
    p = torch.exp(_scores(primitive, q, k, places) - lse[..., None])
    ds = float(primitive.scale) * p * (g @ _with_before(_wide(v)).mT - delta[..., None])
    ds = ds.masked_fill(_with_before(places)[..., None, :] == places[..., None], 0)
    return ds @ keys, _to_both(ds.mT @ _wide(q)), _to_both(p.mT @ g)


def _scores(primitive: SortedAttention | SortedAttentionBackward, q: Tensor, k: Tensor, places: Tensor) -> Tensor:
    """[B, H, m, C, 2 C]: -inf for keys that are not seen, ``ALONE`` for a query's own."""
    query, key = places[..., None], _with_before(places)[..., None, :]
    scores = float(primitive.scale) * (_wide(q) @ _with_before(_wide(k)).mT)
    if primitive.causal:
        scores = scores.masked_fill(key > query, -torch.inf)
    return scores.masked_fill(key == query, ALONE)


def _with_before(x: Tensor) -> Tensor:
    """Of chunks [B, H, m, C, ...]: each after the one before it, [B, H, m, 2 C, ...]."""
    return torch.cat([x.roll(1, 2), x], 3)


def _to_both(gradient: Tensor) -> Tensor:
    """The way back of ``_with_before``."""
    before, own = gradient.chunk(2, 3)
    return own + before.roll(-1, 2)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
