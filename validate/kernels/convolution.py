"""Convolutions, with taps of a channel or of each position's own, on real tensors."""

from __future__ import annotations

from torch import Tensor

from costmodel.ops.convolution import Depthwise, TapsGradient
from costmodel.ops.dynamic_convolution import DynamicDepthwise, DynamicRowsGradient, DynamicTapsGradient
from validate.kernels.registry import Runner, runs


@runs(Depthwise)
def depthwise(primitive: Depthwise, ops: Runner, x: Tensor, taps: Tensor) -> Tensor:
    return (_under_taps(x, taps.shape[1], primitive.apart) * taps[:, None]).sum(-1)


@runs(TapsGradient)
def taps_gradient(primitive: TapsGradient, ops: Runner, x: Tensor, gradient: Tensor) -> Tensor:
    return (_under_taps(x, primitive.taps, primitive.apart) * gradient[..., None]).sum((0, 2))


def _under_taps(x: Tensor, taps: int, apart: int) -> Tensor:
    """What each place has under its taps: [B, C, n, K] of x [B, C, n + (K - 1) apart]."""
    return x.unfold(2, (taps - 1) * apart + 1, 1)[..., ::apart]


@runs(DynamicDepthwise)
def dynamic_depthwise(primitive: DynamicDepthwise, ops: Runner, x: Tensor, taps: Tensor) -> Tensor:
    return (x.unfold(2, taps.shape[3], 1) * taps[..., None, :]).sum(-1)


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
    return (x.unfold(2, primitive.taps, 1) * gradient[..., None]).sum(-2)
