"""Collectives and messages of real tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from costmodel.ops.communication import AllGather, AllReduce, AllToAll, ReduceScatter, RingShift
from costmodel.ops.halo import Halo, HaloReturn
from validate.kernels.registry import Runner, runs


@runs(RingShift)
def ring_shift(primitive: RingShift, ops: Runner, *tensors: Tensor) -> tuple[Tensor, ...]:
    return ops.transport.shift(primitive.axis, tensors).finish()


@runs(Halo)
def halo(primitive: Halo, ops: Runner, x: Tensor) -> tuple[Tensor, ...]:
    size = x.shape[primitive.dim]
    sent = {1: (size - primitive.left, primitive.left), -1: (0, primitive.right)}
    received = {-1: primitive.left, 1: primitive.right}
    outgoing = {hop: [x.narrow(primitive.dim, *rows).contiguous()] for hop, rows in sent.items() if rows[1]}
    incoming = {hop: [_zeros_with(x, primitive.dim, rows)] for hop, rows in received.items() if rows}
    ops.transport.neighbours(primitive.axis, "halo", outgoing, incoming)
    return tuple(incoming[hop][0] for hop in (-1, 1) if hop in incoming)


@runs(HaloReturn)
def halo_return(primitive: HaloReturn, ops: Runner, *gradients: Tensor) -> tuple[Tensor, ...]:
    hops = [hop for hop, there in zip((-1, 1), primitive.sides, strict=True) if there]
    outgoing = {hop: [g.contiguous()] for hop, g in zip(hops, gradients, strict=True)}
    incoming = {-hop: [torch.zeros_like(g, memory_format=torch.contiguous_format)] for hop, (g,) in outgoing.items()}
    ops.transport.neighbours(primitive.axis, "halo, gradients", outgoing, incoming)
    return tuple(incoming[-hop][0] for hop in hops)


def _zeros_with(x: Tensor, dim: int, rows: int) -> Tensor:
    shape = list(x.shape)
    shape[dim] = rows
    return x.new_zeros(shape)


@runs(AllGather)
def all_gather(primitive: AllGather, ops: Runner, x: Tensor) -> Tensor:
    return ops.transport.all_gather(x, primitive.axis, primitive.dim, primitive.order)


@runs(ReduceScatter)
def reduce_scatter(primitive: ReduceScatter, ops: Runner, x: Tensor) -> Tensor:
    return ops.transport.reduce_scatter(x, primitive.axis, primitive.dim, primitive.order)


@runs(AllReduce)
def all_reduce(primitive: AllReduce, ops: Runner, x: Tensor) -> Tensor:
    return ops.transport.all_reduce(x, primitive.axis)


@runs(AllToAll)
def all_to_all(primitive: AllToAll, ops: Runner, x: Tensor) -> Tensor:
    return ops.transport.all_to_all(x, primitive.axis, primitive.split, primitive.concat, primitive.order)
