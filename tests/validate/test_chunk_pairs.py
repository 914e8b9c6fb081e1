"""Pairs with decay in the precisions that models have, where exp of a chunk's whole decay has no number."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from costmodel.recurrences.chunk_pairs import Decay, all_pairs
from costmodel.recurrences.delta import Delta
from costmodel.recurrences.dplr import DiagonalLowRank
from costmodel.recurrences.gated import Gated
from costmodel.written import decayed, delta_matrix, low_rank_matrix
from tests.validate.cases import DTYPES
from validate.executor import Executor

B, H, N, D, E = 1, 2, 128, 8, 4
CHUNK = 64
#: Of a number between 1 and 2, half the distance to the next; sums of a few dozen are off by some of these.
ROUNDING = {"fp32": 2**-24, "bf16": 2**-9}


def drawn(seed: int) -> Iterator[Tensor]:
    """Random tensors of length 1 along the last axis."""
    random = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(B, H, N, D, generator=random, dtype=torch.float64)
        yield x / x.norm(dim=-1, keepdim=True)


def strong_decay(seed: int) -> Tensor:
    """Logarithms of decay down to -8 a token: some -250 over a chunk, exp of which is below float32's smallest."""
    return -8 * torch.rand(B, H, N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(kind: str, dtype: str) -> tuple[Tensor, Tensor]:
    """What a chunked recurrence gives in a dtype, and what its definition gives in float64 for the same numbers."""
    made = drawn(1)
    q, k, z, b = (next(made) for _ in range(4))
    v, beta, decay = next(made)[..., :E], torch.rand(B, H, N, 1, dtype=torch.float64), strong_decay(2)
    q, k, z, b, v, beta = (x.to(DTYPES[dtype]) for x in (q, k, z, b, v, beta))
    decay = decay.float()
    exact = [x.double() for x in (q, k, v, z, b, decay, beta)]
    ops = Executor(DTYPES[dtype])
    if kind == "gated":
        matrix, carry = decayed(torch, exact[0], exact[1], exact[5]), Gated(q, k, v, decay, CHUNK)
    elif kind == "delta":
        matrix = delta_matrix(torch, exact[0], exact[1], exact[6], exact[5])
        carry = Delta(q, k, v, beta, decay, CHUNK)
    else:
        matrix = low_rank_matrix(torch, exact[0], exact[1], exact[3], exact[4], exact[5])
        carry = DiagonalLowRank(q, k, v, z, b, decay, CHUNK)
    return carry.whole(ops), matrix @ exact[2]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["gated", "delta", "low rank"])
def test_strong_decay_of_channels_stays_finite_and_near(kind: str, dtype: str) -> None:
    actual, expected = mixed(kind, dtype)
    # Sums of logarithms up to 500, too, are rounded, so that exp of their differences is off by that much.
    limit = 500 * 2**-23 + 16 * ROUNDING[dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=limit * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("chunk", "whole"), [(1, None), (6, None), (16, None), (24, None), (64, None), (16, 16), (12, 3)]
)
@pytest.mark.parametrize("strict", [False, True])
def test_pairs_are_those_of_the_definition(chunk: int, whole: int | None, strict: bool) -> None:
    """Pieces of 16 where they divide the chunk, of 8 or 2 elsewhere; one piece, or one token a piece."""
    made, decay = drawn(3), strong_decay(4)[:, :, None, :chunk]
    q, k, other = (next(made)[:, :, None, :chunk] for _ in range(3))
    running = decay.cumsum(3)
    upto = running - decay if strict else running
    apart = upto[..., :, None, :] - running[..., None, :, :]
    seen = torch.ones(chunk, chunk, dtype=torch.bool).tril(-1 if strict else 0)[..., None]
    weights = torch.exp(apart.masked_fill(~seen, -torch.inf))
    found = all_pairs(Executor(torch.float64), (q, other), (k,), Decay(running, upto if strict else None, whole))
    for pairs, query in zip(found, (q, other), strict=True):
        expected = torch.einsum("bhnid,bhnijd,bhnjd->bhnij", query, weights, k)
        torch.testing.assert_close(pairs, expected, rtol=0, atol=1e-12)
