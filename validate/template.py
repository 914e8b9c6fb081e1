"""The token-mixing matrix written out: slow, in float64, differentiable; what everything else is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from costmodel.masks import Mask
from validate.attention import kept


def mixing_matrix(q: Tensor, k: Tensor, mask: Mask, scale: float) -> Tensor:
    """P = softmax(scale q k^T + mask) [B, H, n_q, n_k] of q [B, H, n_q, d] and k [B, H_kv, n_k, d]."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = scale * torch.einsum("bhid,bhjd->bhij", q.double(), k.double())
    return scores.masked_fill(~kept(mask, q.shape[2], k.shape[2]), -torch.inf).softmax(-1)


def mix(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> Tensor:
    """Y = P V [B, H, n_q, e], per head."""
    v = v.double().repeat_interleave(q.shape[1] // v.shape[1], 1)
    return torch.einsum("bhij,bhje->bhie", mixing_matrix(q, k, mask, scale), v)
