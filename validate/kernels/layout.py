"""Shapes, slices and places of real tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from costmodel.ops.fused_attention import Merge
from costmodel.ops.layout import (
    AddInto,
    Append,
    Concat,
    Expand,
    Fill,
    Flip,
    Pad,
    Permute,
    Repeat,
    Reshape,
    Slice,
    Write,
)
from validate.kernels.registry import Runner, runs
from validate.layout import shard


def entries(x: Tensor, where: Slice | Pad | Merge, count: int) -> Tensor:
    """A view of the places that a slice takes, that its gradient is put back to, or that more is merged into."""
    if where.step == 1 or count == 0:
        return x.narrow(where.axis, where.start, count)
    stretch = x.narrow(where.axis, where.start, (count - 1) * where.step + 1)
    return stretch[(slice(None),) * where.axis + (slice(None, None, where.step),)]


def memory_order(x: Tensor) -> list[int]:
    """Axes in the order in which they lie in memory, from the outermost on."""
    return sorted(range(x.dim()), key=lambda axis: x.stride(axis) or math.inf, reverse=True)


def laid_out_as(x: Tensor, y: Tensor) -> Tensor:
    """y with its axes in memory in the order of those of x: copied if need be, which is dear, but only once."""
    order = memory_order(x)
    if memory_order(y) == order:
        return y
    return torch.empty_permuted(y.shape, order, dtype=y.dtype, device=y.device).copy_(y)


@runs(Reshape)
def reshape(primitive: Reshape, ops: Runner, x: Tensor) -> Tensor:
    """The same memory where the strides allow it, as they do for all that splits axes; otherwise a copy."""
    return x.reshape(primitive.shape)


@runs(Permute)
def permute(primitive: Permute, ops: Runner, x: Tensor) -> Tensor:
    return x.permute(primitive.axes)


@runs(Flip)
def flip(primitive: Flip, ops: Runner, x: Tensor) -> Tensor:
    return x.flip(primitive.axis)


@runs(Expand)
def expand(primitive: Expand, ops: Runner, x: Tensor) -> Tensor:
    return x.expand(primitive.shape)


@runs(Slice)
def slice_(primitive: Slice, ops: Runner, x: Tensor) -> Tensor:
    return entries(x, primitive, primitive.size)


@runs(Pad)
def pad(primitive: Pad, ops: Runner, x: Tensor) -> Tensor:
    shape = list(x.shape)
    shape[primitive.axis] = primitive.size
    whole = torch.empty_permuted(shape, memory_order(x), dtype=x.dtype, device=x.device).zero_()
    entries(whole, primitive, x.shape[primitive.axis]).copy_(x)
    return whole


@runs(Concat)
def concat(primitive: Concat, ops: Runner, *parts: Tensor) -> Tensor:
    return torch.cat(parts, primitive.axis)


@runs(Repeat)
def repeat(primitive: Repeat, ops: Runner, x: Tensor) -> Tensor:
    axis = primitive.axis
    spread = x.contiguous().unsqueeze(axis + 1).expand(*x.shape[: axis + 1], primitive.times, *x.shape[axis + 1 :])
    return spread.clone(memory_format=torch.contiguous_format).flatten(axis, axis + 1)


@runs(Fill)
def fill(primitive: Fill, ops: Runner) -> Tensor:
    return torch.full(primitive.shape, primitive.value, dtype=ops.dtypes[primitive.to], device=ops.device)


@runs(AddInto)
def add_into(primitive: AddInto, ops: Runner, accumulator: Tensor, block: Tensor) -> Tensor:
    accumulator.narrow(primitive.axis, primitive.start, block.shape[primitive.axis]).add_(block)
    return accumulator


@runs(Write)
def write(primitive: Write, ops: Runner, whole: Tensor, block: Tensor) -> Tensor:
    whole.narrow(primitive.axis, primitive.start, block.shape[primitive.axis]).copy_(block)
    return whole


@runs(Append)
def append(primitive: Append, ops: Runner, cache: Tensor, new: Tensor) -> Tensor:
    spread, size = primitive.spread, new.shape[primitive.axis]
    room = cache.narrow(primitive.axis, cache.shape[primitive.axis] - size, size)
    if spread is not None and new.shape[0] < cache.shape[0]:
        shard(room, 0, spread.size, spread.rank).copy_(new)
    elif spread is None or spread.rank == spread.size - 1:
        room.copy_(new)
    return cache
