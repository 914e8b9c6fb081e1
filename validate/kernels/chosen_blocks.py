"""Attention over chosen blocks on real tensors, with the keys of every query gathered in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from costmodel.ops.chosen_blocks import ChosenAttention, ChosenAttentionBackward, Placed, VisibleBlocks
from validate.kernels.registry import Runner, runs


@runs(VisibleBlocks)
def visible_blocks(primitive: VisibleBlocks, ops: Runner, scores: Tensor) -> Tensor:
    queries, blocks = scores.shape[-2:]
    own = _positions(primitive.placed, queries, scores.device)[:, None] // primitive.placed.block
    block = torch.arange(blocks, device=scores.device)
    most = torch.finfo(scores.dtype).max
    first = ((own, torch.inf), (own - 1, most), (0, most / 2))
    for place, score in reversed(first[: primitive.always]):
        scores = scores.masked_fill(block == place, score)
    return scores.masked_fill(block > own, -torch.inf)


def seen(placed: Placed, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the keys of chosen blocks [B, H_c, n, S b], and which of them a query sees: none after itself."""
    keys = (chosen[..., None] * placed.block + torch.arange(placed.block, device=chosen.device)).flatten(3)
    return keys, keys <= _positions(placed, chosen.shape[2], chosen.device)[:, None]


def _positions(placed: Placed, queries: int, device: torch.device) -> Tensor:
    return torch.arange(placed.start, placed.start + queries, device=device)


@runs(ChosenAttention)
def chosen_attention(
    primitive: ChosenAttention, ops: Runner, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    fetched = _Fetched(primitive.placed, chosen, q.shape[1], k)
    scores = fetched.scores(q, fetched.rows(k), float(primitive.scale))
    lse = scores.logsumexp(-1)
    out = torch.bmm(torch.exp(scores - lse[..., None]), fetched.rows(v))
    return out.view(*q.shape[:3], -1).to(q.dtype), lse.view(q.shape[:3])


@runs(ChosenAttentionBackward)
def chosen_attention_backward(
    primitive: ChosenAttentionBackward, ops: Runner, *inputs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, chosen, out, lse, gradient = inputs
    scale, fetched = float(primitive.scale), _Fetched(primitive.placed, chosen, q.shape[1], k)
    keys, values = fetched.rows(k), fetched.rows(v)
    g, queries = (_wide(x).flatten(0, 2)[:, None] for x in (gradient, q))
    p = torch.exp(fetched.scores(q, keys, scale) - lse.flatten()[:, None, None])
    delta = (g * _wide(out).flatten(0, 2)[:, None]).sum(-1, keepdim=True)
    ds = scale * p * (torch.bmm(g, values.mT) - delta)
    dq = torch.bmm(ds, keys).view(q.shape).to(q.dtype)
    return dq, fetched.put_back(torch.bmm(ds.mT, queries), k), fetched.put_back(torch.bmm(p.mT, g), v)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _Fetched:
    """What each of the B H n queries fetches; keys [B, H_kv, m, d] are laid end to end over batch and heads."""

    def __init__(self, placed: Placed, chosen: Tensor, heads: int, k: Tensor) -> None:
        batch, groups, tokens = k.shape[:3]
        places, visible = (x.repeat_interleave(heads // chosen.shape[1], 1) for x in seen(placed, chosen))
        first = torch.arange(batch * groups, device=k.device).view(batch, groups) * tokens
        first = first.repeat_interleave(heads // groups, 1)[:, :, None, None]
        self.visible = visible.flatten(0, 2)[:, None]
        self.places = (first + places.clamp(max=tokens - 1)).flatten(0, 2)

    def rows(self, x: Tensor) -> Tensor:
        return _wide(x).flatten(0, 2)[self.places]

    def scores(self, q: Tensor, keys: Tensor, scale: float) -> Tensor:
        products = scale * torch.bmm(_wide(q).flatten(0, 2)[:, None], keys.mT)
        return products.masked_fill(~self.visible, -torch.inf)

    def put_back(self, gradient: Tensor, x: Tensor) -> Tensor:
        """Gradients of what was fetched, added up where it came from."""
        total = torch.zeros(x.shape[:3].numel(), x.shape[3], dtype=gradient.dtype, device=x.device)
        total.index_add_(0, self.places.flatten(), gradient.flatten(0, 1))
        return total.view(x.shape).to(x.dtype)
