"""Associative scans on real tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from costmodel.ops.affine_scan import AffineScan
from validate.kernels.registry import Runner, runs

Product = Callable[[Tensor, Tensor], Tensor]


@runs(AffineScan)
def affine_scan(primitive: AffineScan, ops: Runner, x: Tensor, a: Tensor) -> Tensor:
    """Along the first axis, filled up to a power of two."""
    n, numbers = x.shape[primitive.axis], []
    for given in (x, a):
        moved = given.movedim(primitive.axis, 0)
        moved = moved.flip(0) if primitive.reverse else moved
        moved = torch.cat((moved, moved.new_zeros(2 ** (n - 1).bit_length() - n, *moved.shape[1:])))
        numbers.append(torch.view_as_complex(moved.contiguous()) if primitive.pairs else moved)
    values, factors = numbers
    scanned, _ = _scanned(values, factors.conj() if primitive.conjugate else factors)
    real = torch.view_as_real(scanned.resolve_conj()) if primitive.pairs else scanned
    kept = real[:n].flip(0) if primitive.reverse else real[:n]
    return kept.movedim(0, primitive.axis).to(x.dtype).clone(memory_format=torch.contiguous_format)


def _scanned(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours are combined, their results scanned, and these combined with every other step."""
    n = len(x)
    if n == 1:
        return x, a
    odd_x, odd_a = _scanned(a[1::2] * x[::2] + x[1::2], a[1::2] * a[::2])
    even_x = torch.cat((x[:1], a[2::2] * odd_x[:-1] + x[2::2]))
    even_a = torch.cat((a[:1], a[2::2] * odd_a[:-1]))
    return tuple(torch.stack(pair, 1).flatten(0, 1) for pair in ((even_x, odd_x), (even_a, odd_a)))  # type: ignore[return-value]
