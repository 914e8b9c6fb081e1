"""Attention over chosen blocks, against softmax over pairs that are written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from costmodel.masks import Mask
from costmodel.ops.chosen_blocks import ChosenAttention, ChosenAttentionBackward, Placed
from costmodel.ops.contraction import Contract
from costmodel.ops.primitive import Reading
from costmodel.tensor import Tensor as Traced
from costmodel.trace import Tracer, Widths
from validate.executor import Executor
from validate.kernels.chosen_blocks import seen

sizes = st.fixed_dictionaries(
    {"block": st.integers(1, 4), "pieces": st.integers(1, 4), "first": st.integers(0, 3), "S": st.integers(1, 5)}
)


def chosen(heads: int, placed: Placed, queries: int, blocks: int, most: int) -> Tensor:
    """A random choice [2, heads, queries, min(most, blocks)] that holds every query's own block."""
    scores = torch.rand(2, heads, queries, blocks, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ops = Executor(torch.float64)
    return ops.top_k(ops.visible_blocks(scores, placed), min(most, blocks))[1]


@given(sizes)
def test_pairs_are_those_of_any_choice(drawn: dict[str, int]) -> None:
    block, pieces, first = drawn["block"], drawn["pieces"], drawn["first"]
    placed, queries, blocks = Placed(block, first * block), pieces * block, first + pieces
    choice = chosen(1, placed, queries, blocks, drawn["S"])
    visible = seen(placed, choice)[1]
    most = choice.shape[3]
    assert placed.pairs(queries, most, Reading.USEFUL) * 2 == int(visible.sum())
    touched = visible.unflatten(3, (most, block)).any(-1)
    assert placed.pairs(queries, most, Reading.EXECUTED) * 2 == int(touched.sum()) * block
    assert placed.pairs(queries, most, Reading.DENSE) * 2 == visible.numel()


@pytest.mark.parametrize("at", range(7))
def test_pairs_of_a_single_query(at: int) -> None:
    placed = Placed(3, at)
    choice = chosen(1, placed, 1, at // 3 + 1, 2)
    assert placed.pairs(1, choice.shape[3], Reading.USEFUL) * 2 == int(seen(placed, choice)[1].sum())


def test_future_blocks_come_last() -> None:
    """With fewer blocks before it than it may have, a query gets its own block first, then these, then the future."""
    choice = chosen(2, Placed(2, 0), 8, 4, 4)
    for query in range(8):
        own = query // 2
        assert (choice[:, :, query, 0] == own).all()
        assert (choice[:, :, query, 1 : own + 1].sort(-1).values == torch.arange(own)).all()


def test_three_that_are_always_chosen() -> None:
    """The own block, the one before it, the first, and then by score: here the later the better."""
    scores = torch.arange(5, dtype=torch.float64).expand(1, 1, 10, 5)
    placed, ops = Placed(2, 0), Executor(torch.float64)
    order = ops.top_k(ops.visible_blocks(scores, placed, always=3), 5)[1][0, 0]
    assert order[0, 0] == 0
    assert order[2, :2].tolist() == [1, 0]
    assert order[5, :3].tolist() == [2, 1, 0]
    assert order[9].tolist() == [4, 3, 0, 2, 1]
    order = ops.top_k(ops.visible_blocks(-scores, placed, always=0), 5)[1][0, 0]
    assert order[9].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("heads", "groups", "choosing"), [(4, 4, 4), (4, 2, 2), (4, 2, 4), (4, 1, 1)])
@pytest.mark.parametrize("by_block", [False, True])
def test_values_and_gradients(heads: int, groups: int, choosing: int, by_block: bool) -> None:
    """Keys shared by query heads, choices shared by them, and both; a last block that is not full."""
    random = torch.Generator().manual_seed(1)
    queries, tokens, placed = 4, 7, Placed(2, 2)
    shapes = (2, heads, queries, 3), (2, groups, tokens, 3), (2, groups, tokens, 2)
    inputs = [torch.randn(s, generator=random, dtype=torch.float64, requires_grad=True) for s in shapes]
    choice = chosen(choosing, placed, queries, 4, 2)
    primitive = ChosenAttention(placed, 0.7, 8, by_block)

    def method(*xs: Tensor) -> Tensor:
        return Executor(torch.float64).apply(primitive, *xs, choice)[0]

    q, k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in inputs)
    block = torch.arange(tokens) // 2
    member = (choice.repeat_interleave(heads // choosing, 1)[..., None, :] == block[:, None]).any(-1)
    keep = member & (torch.arange(tokens) <= 2 + torch.arange(queries)[:, None])
    expected = (0.7 * q @ k.mT).masked_fill(~keep, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(method(*inputs), expected, rtol=1e-10, atol=1e-10)
    torch.autograd.gradcheck(method, inputs)


def traced(by_block: bool) -> Any:
    ops = Tracer(Widths(2, 4, 4), 1)
    q, k, v = (Traced.new((1, heads, 8, width), 2) for heads, width in ((4, 3), (2, 3), (2, 5)))
    choice = Traced.new((1, 2, 8, 2), 8)
    primitive = ChosenAttention(Placed(2, 0), 1, 4, by_block)
    return primitive, (q, k, v, choice), ops.apply(primitive, q, k, v, choice)


def test_traffic_by_hand() -> None:
    """8 queries, 4 heads in 2 groups, 2 blocks of 2 keys of width 3 and values of width 5, 2 bytes each."""
    primitive, inputs, outputs = traced(by_block=False)
    read = 2 * 4 * 8 * 3 + 8 * 2 * 8 * 2 + 2 * 2 * 8 * (2 * 2) * (3 + 5)  # queries, choices, blocks of each group
    assert primitive.traffic(inputs, outputs) == (read, 2 * 4 * 8 * 5 + 4 * 4 * 8)
    primitive, inputs, outputs = traced(by_block=True)
    partial = 2 * 4 * 4 * 8 * (5 + 1)  # out and lse of each of the two blocks, in float32
    read = 2 * (2 * 4 * 8 * 3) + 2 * 2 * 8 * (3 + 5) + 8 * 2 * 8 * 2 + partial
    assert primitive.traffic(inputs, outputs) == (read, 2 * 4 * 8 * 5 + 4 * 4 * 8 + partial)


def test_traffic_of_latents_by_hand() -> None:
    """8 queries of 4 heads that share 2 latents each, of width 5, of which the first 3 are the value, 2 bytes each."""
    ops = Tracer(Widths(2, 4, 4), 1)
    q, latents, choice = (
        Traced.new(shape, width) for shape, width in (((1, 4, 8, 5), 2), ((1, 1, 8, 5), 2), ((1, 1, 8, 2), 8))
    )
    values = ops.slice(latents, 3, 0, 3)
    primitive = ChosenAttention(Placed(1, 0), 1, 4, adding=True)
    inputs = (q, latents, values, choice)
    out, lse = ops.apply(primitive, *inputs)
    fetched = 2 * 8 * 2 * 5  # keys with the values in them
    assert primitive.traffic(inputs, (out, lse)) == (2 * 4 * 8 * 5 + 8 * 8 * 2 + fetched, 2 * 4 * 8 * 3 + 4 * 4 * 8)
    backward = ChosenAttentionBackward(Placed(1, 0), 1, adding=True)
    gradients = ops.chosen_attention_backward(inputs, (out, lse), out, primitive)
    read = 2 * 4 * 8 * (5 + 3 + 3) + 4 * 4 * 8 + 8 * 8 * 2 + fetched + 2 * fetched  # in float32 what is added to
    written = 2 * 4 * 8 * 5 + 2 * 8 * (5 + 3) + 2 * fetched
    assert backward.traffic((*inputs, out, lse, out), gradients) == (read, written)


def test_products_that_skip_tiles() -> None:
    """4 queries and keys of width 3 under a causal mask: 10 pairs, 3 of 4 tiles of 2 x 2, 16 in all."""
    contract = Contract("id,jd->ij", Mask(causal=True), "ij", tile=2)
    x = Traced.new((4, 3), 2)
    counted = [contract.flops((x, x), (), reading)["contraction"] for reading in Reading]
    assert counted == [6 * 10, 6 * 12, 6 * 16, 6 * 16]
    assert replace(contract, tile=None).flops((x, x), (), Reading.EXECUTED)["contraction"] == 6 * 16


def test_what_does_not_fit_is_refused() -> None:
    ops = Tracer(Widths(2, 4, 4), 1)
    q, k, choice = (Traced.new(shape, 2) for shape in ((1, 1, 4, 2), (1, 1, 4, 3), (1, 1, 4, 1)))
    with pytest.raises(ValueError, match="do not fit"):
        ops.apply(ChosenAttention(Placed(2, 0), 1, 4), q, k, k, choice)
