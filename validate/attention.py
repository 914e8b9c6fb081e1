"""Fused attention on real tensors: torch's flash kernels where they apply, and products with the scores in memory.

Tensors are q [B, H, n_q, d], k [B, H, n_k, d], v [B, H, n_k, e], out [B, H, n_q, e] and lse [B, H, n_q], the natural
logarithm of the sum of the exponentials of the scaled and masked scores, in float32 or, for float64, float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from costmodel.masks import Mask

_aten: Any = torch.ops.aten

Triple = tuple[Tensor, Tensor, Tensor]


def forward(qkv: Triple, mask: Mask, scale: float, flash: bool) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; k and v may have fewer heads, each for a group of query heads."""
    q, k, v = _for_heads(qkv)
    mask, before = _simplest(mask, q.shape[2], k.shape[2]), k.shape[2] - q.shape[2]
    if not (flash and _flash_applies(q, k, v, mask)):
        return _forward_math((q, k, v), mask, scale)
    if not mask.causal or before == 0:
        return _forward_flash((q, k, v), mask.causal, scale)
    seen = _forward_flash((q, k[:, :, :before], v[:, :, :before]), False, scale)
    return merge(*seen, *_forward_flash((q, k[:, :, before:], v[:, :, before:]), True, scale))


def backward(qkv: Triple, known: Triple, mask: Mask, scale: float, flash: bool) -> Triple:
    """Triple of q, k and v.

    Args:
        known: the output, its log-sum-exp and its gradient, all of which may be over more keys than these.
    """
    groups, (q, k, v) = qkv[1].shape[1], _for_heads(qkv)
    mask, before = _simplest(mask, q.shape[2], k.shape[2]), k.shape[2] - q.shape[2]
    if not (flash and _flash_applies(q, k, v, mask)):
        dq, dk, dv = _backward_math((q, k, v), known, mask, scale)
    elif not mask.causal or before == 0:
        dq, dk, dv = _backward_flash((q, k, v), known, mask.causal, scale)
    else:
        first = _backward_flash((q, k[:, :, :before], v[:, :, :before]), known, False, scale)
        second = _backward_flash((q, k[:, :, before:], v[:, :, before:]), known, True, scale)
        dq, dk, dv = first[0] + second[0], torch.cat([first[1], second[1]], 2), torch.cat([first[2], second[2]], 2)
    return dq, _of_groups(dk, groups), _of_groups(dv, groups)


def merge(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the keys of both, in new memory; see ``costmodel.ops.fused_attention.Merge``."""
    total = torch.logaddexp(lse, block_lse)
    shown = total.masked_fill(total == -torch.inf, 0)  # where neither sees a key, weights are exp(-inf), not nan
    weight, block_weight = (torch.exp(x - shown)[..., None] for x in (lse, block_lse))
    return (weight * out + block_weight * block_out).to(out.dtype), total


def kept(mask: Mask, n_q: int, n_k: int, device: torch.device | None = None) -> Tensor:
    """Which pairs [n_q, n_k] the mask leaves, each written out: the slow twin of ``Mask.useful_pairs``."""
    query = torch.arange(n_k * mask.stride - n_q, n_k * mask.stride, device=device)[:, None] - mask.ahead
    key = (torch.arange(n_k, device=device)[None, :] + 1) * mask.stride - 1
    keep = torch.ones(n_q, n_k, dtype=torch.bool, device=device)
    if mask.causal:
        keep &= key <= query
    if mask.window is not None:
        keep &= (query - key < mask.window) & (key - query < mask.window)
    return keep


def _simplest(mask: Mask, n_q: int, n_k: int) -> Mask:
    """The same pairs, without a rule that leaves out none."""
    if mask.window is not None and mask.window >= n_k:
        mask = replace(mask, window=None, ahead=0)
    return replace(mask, causal=False) if n_q == 1 and mask.window is None else mask


def _for_heads(qkv: Triple) -> Triple:
    """Keys and values once for every query head."""
    q, k, v = qkv
    if q.shape[1] == k.shape[1]:  # there may be none
        return q, k, v
    times = q.shape[1] // k.shape[1]
    return q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)


def _of_groups(gradient: Tensor, groups: int) -> Tensor:
    b, heads, *rest = gradient.shape
    return gradient if heads == groups else gradient.reshape(b, groups, heads // groups, *rest).sum(2)


# Flash kernels --------------------------------------------------------------------------------------------------------


def _flash_applies(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> bool:
    """Torch's kernels know neither window nor stride and need heads, keys, one dtype, and values as wide as keys.

    On CUDA they need a half-width dtype as well.
    """
    fits = mask.window is None and mask.stride == 1 and q.shape[3] == v.shape[3]
    fits = fits and q.dtype == k.dtype and k.shape[1] > 0 and k.shape[2] > 0
    if q.device.type == "cuda":
        return fits and q.dtype in (torch.float16, torch.bfloat16) and q.shape[3] % 8 == 0
    return fits and q.device.type == "cpu"


def _dense_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _forward_flash(qkv: Triple, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = (_dense_last(x) for x in qkv)
    if q.device.type == "cuda":
        out, lse = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)[:2]
        return out, lse[..., : q.shape[2]]
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    return out, lse


def _backward_flash(qkv: Triple, known: Triple, causal: bool, scale: float) -> Triple:
    q, k, v = (_dense_last(x) for x in qkv)
    out, lse, gradient = known
    lengths = q.shape[2], k.shape[2]
    operands = (_dense_last(gradient), q, k, v, _dense_last(out), lse.contiguous())
    if q.device.type == "cuda":
        seed = torch.empty(2, dtype=torch.uint64, device=q.device)  # of dropout, which there is none of
        op = _aten._scaled_dot_product_flash_attention_backward
        dq, dk, dv = op(*operands, None, None, *lengths, 0.0, causal, seed, seed, scale=scale)
    else:
        op = _aten._scaled_dot_product_flash_attention_for_cpu_backward
        dq, dk, dv = op(*operands, 0.0, causal, scale=scale)
    return dq, dk, dv


# Scores in memory -----------------------------------------------------------------------------------------------------


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _scores(q: Tensor, k: Tensor, mask: Mask, scale: float) -> Tensor:
    keep = kept(mask, q.shape[2], k.shape[2], q.device)
    return (scale * (_wide(q) @ _wide(k).mT)).masked_fill(~keep, -torch.inf)


def _exponential(scores: Tensor, lse: Tensor) -> Tensor:
    """exp(scores - lse), 0 in the rows of queries that see no key."""
    return torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0)[..., None])


def _forward_math(qkv: Triple, mask: Mask, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = qkv
    scores = _scores(q, k, mask, scale)
    lse = scores.logsumexp(-1)
    return (_exponential(scores, lse) @ _wide(v)).to(q.dtype), lse


def _backward_math(qkv: Triple, known: Triple, mask: Mask, scale: float) -> Triple:
    """Five products, FlashAttention-2 (arXiv 2307.08691), algorithm 2."""
    q, k, v = qkv
    out, lse, gradient = known
    g = _wide(gradient)
    p = _exponential(_scores(q, k, mask, scale), lse)
    delta = (g * _wide(out)).sum(-1, keepdim=True)
    ds = scale * p * (g @ _wide(v).mT - delta)
    dq, dk, dv = ds @ _wide(k), ds.mT @ _wide(q), p.mT @ g
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)
