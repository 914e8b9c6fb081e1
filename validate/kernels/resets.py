"""Tokens and pairs of packed documents on real tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from costmodel.documents import Documents
from costmodel.ops.resets import Apart, Reset
from validate.kernels.registry import Runner, runs


@runs(Reset)
def reset(primitive: Reset, ops: Runner, x: Tensor) -> Tensor:
    n, start = x.shape[primitive.axis], int(primitive.packed.start)
    number = document(primitive.packed.documents, start - 1, n + 1, x.device)
    first = (number[1:] != number[:-1]).view(n, *[1] * (x.dim() - primitive.axis - 1))
    return x.masked_fill(first, float(primitive.fill))


@runs(Apart)
def apart(primitive: Apart, ops: Runner, pairs: Tensor) -> Tensor:
    count, chunk = pairs.shape[-3:-1]
    packed = primitive.packed
    number = document(packed.documents, int(packed.start), count * chunk, pairs.device).view(count, chunk)
    return pairs.masked_fill(number[:, :, None] != number[:, None, :], 0)


def document(documents: Documents, start: int, n: int, device: torch.device) -> Tensor:
    """Which document each of n tokens is of, from token ``start`` on; 0 before the sequence, then 1, 2, ..."""
    begins = torch.tensor([begin for begin, _ in documents.spans(max(1, start + n))], device=device)
    return torch.bucketize(torch.arange(start, start + n, device=device), begins, right=True)
