"""Convolutions, with taps of a channel or of each position's own, on real tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from costmodel.ops.convolution import Depthwise, TapsGradient
from costmodel.ops.dynamic_convolution import DynamicDepthwise, DynamicRowsGradient, DynamicTapsGradient
from validate.kernels.layout import laid_out_as
from validate.kernels.pointwise import reduced
from validate.kernels.registry import Runner, runs
from validate.kernels.resets import document


@runs(Depthwise)
def depthwise(primitive: Depthwise, ops: Runner, x: Tensor, taps: Tensor) -> Tensor:
    count, apart = taps.shape[1], primitive.apart
    n = x.shape[2] - (count - 1) * apart
    places = (_under(x, tap, n, primitive) for tap in range(count))
    return _summed(ops, ((place, taps[:, tap, None]) for tap, place in enumerate(places)))


@runs(TapsGradient)
def taps_gradient(primitive: TapsGradient, ops: Runner, x: Tensor, gradient: Tensor) -> Tensor:
    gradient = laid_out_as(x, gradient)
    under = (_under(x, tap, gradient.shape[2], primitive) for tap in range(primitive.taps))
    return torch.stack([reduced(torch.sum, places * gradient, (0, 2)).flatten() for places in under], 1)


def _under(x: Tensor, tap: int, n: int, primitive: Depthwise | TapsGradient) -> Tensor:
    """What n outputs have under a tap [B, C, n]; 0 where that is of another document."""
    first, packed = tap * int(primitive.apart), primitive.packed
    places = x.narrow(2, first, n)
    if packed is None:
        return places
    own, other = (
        document(packed.documents, int(start), n, x.device) for start in (packed.output, packed.under + first)
    )
    return places.masked_fill(own != other, 0)


@runs(DynamicDepthwise)
def dynamic_depthwise(primitive: DynamicDepthwise, ops: Runner, x: Tensor, taps: Tensor) -> Tensor:
    n, count = taps.shape[2:]
    return _summed(ops, ((x.narrow(2, tap, n), taps[..., tap, None]) for tap in range(count)))


def _summed(ops: Runner, factors: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The sum of products, taken one after the other: all of them never exist, and the first factors' layout stays."""
    products = iter(factors)
    x, y = next(products)
    total = x.to(ops.dtypes["accumulate"]) * y
    for one, other in products:
        total.addcmul_(one, other)
    return total.to(x.dtype)


@runs(DynamicRowsGradient)
def dynamic_rows_gradient(primitive: DynamicRowsGradient, ops: Runner, gradient: Tensor, taps: Tensor) -> Tensor:
    n, k = taps.shape[2:]
    b, h, _, e = gradient.shape
    rows = gradient.new_zeros(b, h, n + k - 1, e)
    for tap in range(k):
        rows[:, :, tap : tap + n] += gradient * taps[..., tap, None]
    return rows


@runs(DynamicTapsGradient)
def dynamic_taps_gradient(primitive: DynamicTapsGradient, ops: Runner, x: Tensor, gradient: Tensor) -> Tensor:
    n = gradient.shape[2]
    under = (x.narrow(2, tap, n) for tap in range(primitive.taps))
    return torch.stack([reduced(torch.sum, places * gradient, (3,)).squeeze(3) for places in under], 3)
