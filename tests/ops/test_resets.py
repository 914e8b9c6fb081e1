"""Packed documents in single operations: states that are reset, pairs and taps of one document alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from costmodel.documents import Documents, Packed
from costmodel.ops.convolution import under
from costmodel.recurrences.resets import apart, reset
from tests.ops.checking import Case, Sizes, check, named

sizes = st.fixed_dictionaries(
    {"B": st.integers(2, 3), "L": st.integers(2, 4), "C": st.integers(2, 4), "w": st.integers(2, 3)}
)

#: Of one token, of two, and all others; the first at hand is the second token of the second document.
PACKED = Packed(Documents((1, 2)), 2)


def documents(n: int) -> Tensor:
    return torch.tensor([1, *[2] * (n - 1)])


def without(pairs: Tensor) -> Tensor:
    """By a matrix of ones and zeros, chunk by chunk."""
    count, chunk = pairs.shape[1:3]
    number = documents(count * chunk).view(count, chunk)
    return pairs * (number[:, :, None] == number[:, None]).to(pairs)


def slid(x: Tensor, taps: Tensor) -> Tensor:
    """Each document by itself, of inputs that begin w - 1 tokens earlier, 1 or 2."""
    before, n = taps.shape[1] - 1, x.shape[2] - taps.shape[1] + 1
    number = torch.tensor([0, 1])[2 - before :]
    whole = torch.cat([number, documents(n)])
    own = [
        sum(
            (x[:, :, i + j] * taps[:, j] for j in range(before + 1) if whole[i + j] == whole[i + before]),
            torch.zeros_like(x[:, :, 0]),
        )
        for i in range(n)
    ]
    return torch.stack(own, 2)


def convolved(ops: Any, x: Any, taps: Any) -> Any:
    return ops.depthwise(x, taps, packed=under(PACKED, ops.shape(taps)[1] - 1))


CASES = {
    "reset": Case(
        lambda ops, x: reset(ops, x, PACKED, axis=1),
        lambda x: torch.cat((x[:, :1], torch.zeros_like(x[:, :1]), x[:, 2:]), 1),
        lambda s: ((s.B, s.L, s.C),),
        lambda s: {"elementwise": s.B * s.L * s.C},
        lambda s: {"elementwise": s.B * s.L * s.C},
    ),
    "apart": Case(
        lambda ops, x: apart(ops, x, PACKED),
        without,
        lambda s: ((s.B, s.L, s.C, s.C),),
        lambda s: {"elementwise": s.B * s.L * s.C**2},
        lambda s: {"elementwise": s.B * s.L * s.C**2},
    ),
    "depthwise, packed documents": Case(
        convolved,
        slid,
        lambda s: ((s.B, s.C, s.L + s.w - 1), (s.C, s.w)),
        lambda s: {"elementwise": 3 * s.w * s.B * s.C * s.L},
        lambda s: {"elementwise": 3 * s.w * s.B * s.C * (s.L + s.w - 1 + s.L)},
    ),
}


@pytest.mark.parametrize("case", named(CASES))
@given(sizes=sizes)
@settings(max_examples=10)
def test_reset(case: Case, sizes: Sizes) -> None:
    check(case, sizes)


def test_the_first_token_has_a_decay_of_zero() -> None:
    """Its logarithm is -inf, of which neither the exponential of a sum nor a gradient is no number."""
    from validate.executor import Executor

    ops, x = Executor(torch.float64), torch.randn(1, 1, 4, 1, dtype=torch.float64, requires_grad=True)
    faded = ops.cumsum(reset(ops, x, PACKED, "-inf"), 2)
    assert faded[0, 0, :, 0].isinf().tolist() == [False, True, True, True]
    left = ops.map("exp", faded)
    assert left[0, 0, 1:].eq(0).all()
    left.sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0, :, 0].tolist() == [left[0, 0, 0, 0].item(), 0, 0, 0]
