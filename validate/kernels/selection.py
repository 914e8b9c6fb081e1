"""Choosing, ordering, gathering and scattering on real tensors."""

from __future__ import annotations

from torch import Tensor

from costmodel.ops.selection import Gather, ScatterAdd, Sort, TopK
from validate.kernels.registry import Runner, runs


@runs(TopK)
def top_k(primitive: TopK, ops: Runner, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = x.topk(primitive.k, dim=-1)
    return values, indices


@runs(Sort)
def sort(primitive: Sort, ops: Runner, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = x.sort(dim=-1, descending=primitive.descending, stable=True)
    return values, indices


@runs(Gather)
def gather(primitive: Gather, ops: Runner, x: Tensor, indices: Tensor) -> Tensor:
    outer, inner = x.shape[: primitive.axis], x.shape[primitive.axis + 1 :]
    rows = x.reshape(outer.numel(), -1, inner.numel())
    places = indices.reshape(outer.numel(), -1, 1).expand(-1, -1, inner.numel())
    return rows.gather(1, places).view(*indices.shape, *inner)


@runs(ScatterAdd)
def scatter_add(primitive: ScatterAdd, ops: Runner, x: Tensor, indices: Tensor) -> Tensor:
    outer, inner = x.shape[: primitive.axis], x.shape[indices.ndim :]
    added = x.reshape(outer.numel(), -1, inner.numel())
    places = indices.reshape(outer.numel(), -1, 1).expand(-1, -1, inner.numel())
    whole = x.new_zeros(outer.numel(), primitive.size, inner.numel())
    return whole.scatter_add_(1, places, added).view(*outer, primitive.size, *inner)
