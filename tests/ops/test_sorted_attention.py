"""Attention within sorted chunks: values, gradients, FLOPs and bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from costmodel.ops.primitive import Reading
from costmodel.ops.sorted_attention import SortedAttention, SortedAttentionBackward
from costmodel.tensor import Tensor as Traced
from costmodel.trace import Tracer, Widths
from validate.executor import Executor

ORDERS = torch.tensor([[0, 4, 3, 2, 5, 1], [3, 1, 0, 2, 4, 5]])  # of two heads
OPS = Executor(torch.float64)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Chunks of 2 of 6 tokens in two heads."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 3, 2, d, generator=random, dtype=torch.float64) for d in (3, 3, 4))
    return q, k, v


def by_hand(primitive: SortedAttention, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Query by query."""
    out, lse = torch.zeros(1, 2, 6, 4, dtype=torch.float64), torch.zeros(1, 2, 6, dtype=torch.float64)
    for head, order in enumerate(ORDERS.tolist()):
        for place, query in enumerate(order):
            own = place // 2
            around = [(own - 1) % 3 * 2, (own - 1) % 3 * 2 + 1, own * 2, own * 2 + 1]
            seen = [s for s in around if order[s] != query and (order[s] < query or not primitive.causal)]
            keys, values, row = (x[0, head].flatten(0, 1) for x in (k, v, q))
            scores = 0.7 * keys[seen] @ row[place] if seen else torch.tensor([-1e4], dtype=torch.float64)
            out[0, head, place] = scores.softmax(0) @ values[seen or [place]]
            lse[0, head, place] = scores.logsumexp(0)
    return out.view(v.shape), lse.view(q.shape[:4])


@pytest.mark.parametrize("causal", [True, False])
def test_values_and_gradients(causal: bool) -> None:
    """Under the mask, the first token, and each whose two chunks hold none before it, see themselves."""
    primitive, places = SortedAttention(causal, 0.7, 8), ORDERS.view(1, 2, 3, 2)
    q, k, v = (x.requires_grad_() for x in inputs())
    out, lse = OPS.apply(primitive, q.detach(), k.detach(), v.detach(), places)
    expected, sums = by_hand(primitive, q, k, v)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(lse, sums, rtol=0, atol=1e-10)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, (q, k, v), gradient)
    delta = (out * gradient).sum(-1)
    found = OPS.apply(
        SortedAttentionBackward(causal, 0.7), q.detach(), k.detach(), v.detach(), places, lse, delta, gradient
    )
    for actual, of in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual, of, rtol=0, atol=1e-10)


def traced() -> tuple[Any, Any]:
    """Chunks of 2 of 6 tokens in two heads, in 2 bytes, accumulated in 4."""
    ops = Tracer(Widths(2, 4, 4), 1)
    q, k, v = (Traced.new((1, 2, 3, 2, d), 2) for d in (3, 3, 4))
    return (q, k, v, Traced.new((1, 2, 3, 2), 8)), ops


def test_flops_and_traffic_by_hand() -> None:
    """12 queries of 4 keys each: 48 pairs."""
    given, ops = traced()
    primitive = SortedAttention(True, 1, 4)
    found = ops.apply(primitive, *given)
    counted = primitive.flops(given, found, Reading.USEFUL)
    assert counted == {"contraction": 48 * 2 * 7, "elementwise": 48 * 2 + 12 * 5, "reduction": 96, "special": 60}
    assert primitive.traffic(given, found) == (12 * (3 + 3 + 4) * 2 + 12 * 8, 12 * 4 * 2 + 12 * 4)
    out, lse = found
    backward, rows = SortedAttentionBackward(True, 1), (*given, lse, lse, out)
    found = ops.apply(backward, *rows)
    assert [x.width for x in found] == [4, 4, 4]
    counted = backward.flops(rows, found, Reading.DENSE)
    assert counted == {"contraction": 48 * (6 * 3 + 4 * 4), "elementwise": 48 * 4, "special": 48}
    assert backward.flops(rows, found, Reading.MODEL)["contraction"] == 48 * 4 * 7
    assert backward.traffic(rows, found) == (12 * (14 * 2 + 8 + 4 + 4), 12 * 10 * 4)


def test_what_does_not_fit_is_refused() -> None:
    (q, k, v, places), ops = traced()
    with pytest.raises(ValueError, match="do not fit"):
        ops.apply(SortedAttention(True, 1, 4), q, k, v, Traced.new((1, 2, 2, 3), 8))
    with pytest.raises(ValueError, match="do not fit"):
        ops.apply(SortedAttention(True, 1, 4), q, k, Traced.new((1, 2, 3, 1, 4), 2), places)
