"""Convolutions with taps of each position's own on real tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from costmodel.ops.dynamic_convolution import DynamicDepthwise, DynamicRowsGradient, DynamicTapsGradient
from validate.kernels import runs

if TYPE_CHECKING:
    from validate.executor import Executor


@runs(DynamicDepthwise)
def dynamic_depthwise(primitive: DynamicDepthwise, ops: Executor, x: Tensor, taps: Tensor) -> Tensor:
    return (x.unfold(2, taps.shape[3], 1) * taps[..., None, :]).sum(-1)


@runs(DynamicRowsGradient)
def rows_gradient(primitive: DynamicRowsGradient, ops: Executor, gradient: Tensor, taps: Tensor) -> Tensor:
    n, k = taps.shape[2:]
    b, h, _, e = gradient.shape
    rows = gradient.new_zeros(b, h, n + k - 1, e)
    for tap in range(k):
        rows[:, :, tap : tap + n] += gradient * taps[..., tap, None]
    return rows


@runs(DynamicTapsGradient)
def taps_gradient(primitive: DynamicTapsGradient, ops: Executor, x: Tensor, gradient: Tensor) -> Tensor:
    return (x.unfold(2, primitive.taps, 1) * gradient[..., None]).sum(-2)
