"""Rows that differ from head to head, on real tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from costmodel.ops.thinning import Numbers, Spread, Thin
from validate.kernels.registry import Runner, runs


@runs(Numbers)
def numbers(primitive: Numbers, ops: Runner) -> Tensor:
    return torch.arange(primitive.start, primitive.start + primitive.size, device=ops.device)


@runs(Thin)
def thin(primitive: Thin, ops: Runner, x: Tensor, heads: Tensor) -> Tensor:
    return x[:, *_places(heads, x.shape[2] // primitive.step, primitive.step)]


@runs(Spread)
def spread(primitive: Spread, ops: Runner, x: Tensor, heads: Tensor) -> Tensor:
    rows = x.shape[2]
    whole = x.new_full((*x.shape[:2], rows * primitive.step, *x.shape[3:]), primitive.fill)
    whole[:, *_places(heads, rows, primitive.step)] = x
    return whole


def _places(heads: Tensor, rows: int, step: int) -> tuple[Tensor, Tensor]:
    """Indices [H, 1] and [H, rows] of heads and of their rows."""
    first = (heads % step)[:, None]
    return torch.arange(len(heads), device=heads.device)[:, None], first + step * torch.arange(
        rows, device=heads.device
    )
