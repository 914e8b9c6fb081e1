"""Grids of ranks by hand: what each axis carries, and how even the work is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from costmodel.ops.primitive import Reading
from costmodel.strategies.double_ring import double_ring
from costmodel.strategies.tile import tile
from costmodel.strategy import Strategy, strategies
from costmodel.subject import from_mixer
from tests.validate.cases import Case, check_case, expected
from tests.validate.drawing import refusal
from validate.launch import RankPool

(LAYER,) = from_mixer("attention", 16, heads=4, kv_heads=2, head_dim=4).layers

#: Of a rank's part of 48 tokens on 2 x 3 ranks, bf16: queries, or outputs; keys and values; 4-byte log-sum-exps.
Q, KV, LSE = 8 * 4 * 4 * 2, 2 * 8 * 2 * 4 * 2, 8 * 4 * 4


def on_grid(context: int, ulysses: int, **options: object) -> Case:
    mesh = {"context": context, "ulysses": ulysses}
    return Case(**{"layer": LAYER, "strategy": tile, "mesh": mesh, "length": 48, "dtype": "bf16", **options})


def test_bytes_of_a_tile() -> None:
    # Forward, 3 ranks in a row and 2 in a column: 2 x (Q there, O and its log-sum-exp back) and 1 x (K and V).
    sent = expected(on_grid(2, 3, phase="forward")).sent(0)
    assert (sent["ulysses"].bytes, sent["context"].bytes) == (2 * (2 * Q + LSE), KV)
    # Backward: q, out and its gradient with the log-sum-exp along the row, dq back in float32; k, v again, dk, dv back.
    sent = expected(on_grid(2, 3)).sent(0)
    assert sent["ulysses"].bytes == 2 * (2 * Q + LSE) + 2 * (3 * Q + LSE + 2 * Q)
    assert sent["context"].bytes == KV + KV + 2 * KV


def test_hops_of_a_double_ring() -> None:
    # 2 groups of 3: each block goes 2 hops in either group, and 1 between them; gradients in float32 go home as well.
    sent = expected(on_grid(2, 3, strategy=double_ring, phase="forward")).sent(0)
    assert (sent["ulysses"].bytes, sent["context"].bytes) == (2 * 2 * KV, KV)
    sent = expected(on_grid(2, 3, strategy=double_ring)).sent(0)
    assert (sent["ulysses"].bytes, sent["context"].bytes) == (2 * 4 * KV + 2 * 3 * 2 * KV, 2 * KV + 2 * 2 * KV)


def test_square_tiles_send_a_square_root_less() -> None:
    # Of H = H_kv heads, P = n x n: (n - 1) (2 S_Q + S_KV) with S ~ 1 / n^2, which is 4 (n - 1) / n^2 B L H d.
    (layer,) = from_mixer("attention", 16, heads=4, kv_heads=4, head_dim=4).layers
    sent = {}
    for n in (2, 4, 8):
        found = expected(on_grid(n, n, layer=layer, length=128, phase="forward")).sent(0)
        lse = (n - 1) * 4 * 4 * 128 // n**2
        sent[n] = found["ulysses"].bytes + found["context"].bytes - lse
    assert [sent[n] * n**2 // (n - 1) for n in sent] == [4 * 128 * 16 * 2] * 3


def test_a_gathered_latent_is_all_that_is_sent() -> None:
    # 12 tokens a rank of r + d_r = 3 + 2 entries to 1 other rank, in bf16; going back again, and in float32 home.
    (layer,) = from_mixer("mla", 6, heads=4, q_rank=3, kv_rank=3, nope_dim=2, rope_dim=2, value_dim=3).layers
    case = Case(layer, strategies.get("all-gather-latent"), {"context": 2}, 24, dtype="bf16")
    assert expected(case).sent(0)["context"].bytes == 12 * 5 * (2 + 2 + 4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ulysses-ring", "ulysses-zigzag", "tile", "double-ring"])
def test_either_axis_may_be_the_inner_one(pool: RankPool, strategy: str) -> None:
    check_case(pool, on_grid(2, 2, strategy=strategies.get(strategy), context_inside=True))


@pytest.mark.slow
def test_either_axis_may_be_the_inner_one_of_a_product(pool: RankPool) -> None:
    check_case(pool, product_on_grid(2, 2, context_inside=True))


@pytest.mark.parametrize("strategy", [tile, double_ring])
@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (4, 4)])
def test_causal_work_is_the_same_on_every_rank(grid: tuple[int, int], strategy: Strategy) -> None:
    context, ulysses = grid
    known = expected(on_grid(context, ulysses, strategy=strategy, length=4 * context * ulysses))
    work = known.program.flops(Reading.USEFUL)["contraction"]
    assert len({known.value(work, rank) for rank in range(context * ulysses)}) == 1


(PRODUCT,) = from_mixer("resmlp", 16).layers


def product_on_grid(context: int, ulysses: int, **options: object) -> Case:
    return on_grid(context, ulysses, layer=PRODUCT, strategy=strategies.get("product-grid"), causal=False, **options)


(PERCEPTRON,) = from_mixer("mlp-mixer", 16, hidden=24).layers


def test_bytes_of_a_perceptron() -> None:
    # 8 tokens and 24 / 6 entries a rank, of 16 channels: tokens to 2 other ranks and back, entries to 1 and back.
    case = replace(product_on_grid(2, 3, phase="forward"), layer=PERCEPTRON)
    sent = expected(case).sent(0)
    assert (sent["ulysses"].bytes, sent["context"].bytes) == (2 * 2 * 8 * 16 * 2, 2 * 1 * 4 * 16 * 2)
    # Where all ranks add up all entries, each sends 2 (P - 1) / P of them.
    summed = expected(replace(case, strategy=strategies.get("all-reduce"), mesh={"context": 6})).sent(0)
    assert summed["context"].bytes == 2 * 5 * 4 * 16 * 2


def test_entries_between_products_are_cut_like_the_grid() -> None:
    told = refusal(replace(product_on_grid(2, 2, length=8), layer=from_mixer("mlp-mixer", 4, hidden=6).layers[0]))
    assert told == "6 entries between two products do not divide over 2 x 2 ranks"


def test_bytes_of_a_product() -> None:
    values = 8 * 16 * 2
    sent = expected(product_on_grid(2, 3, phase="forward")).sent(0)
    assert (sent["ulysses"].bytes, sent["context"].bytes) == (2 * values, 1 * values)
    # Backward: the gradient along the row; values once more and theirs, in float32, along the column.
    sent = expected(product_on_grid(2, 3)).sent(0)
    assert (sent["ulysses"].bytes, sent["context"].bytes) == (2 * values + 2 * values, values + values + 2 * values)


@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (2, 4)])
def test_parts_of_a_matrix_on_a_grid_make_up_the_product(grid: tuple[int, int]) -> None:
    """Each has 1 / P of the entries; those of a row of ranks add up to the product with the tokens of that row."""
    context, ulysses = grid
    random, n = torch.Generator().manual_seed(0), 2 * context * ulysses
    matrix, values = (torch.randn(n, width, generator=random, dtype=torch.float64) for width in (n, 3))
    found = torch.zeros(context, n // context, 3, dtype=torch.float64)
    for row in range(context):
        for column in range(ulysses):
            made = product_on_grid(*grid, length=n).on(row * ulysses + column)
            part = made.cut("mixing", matrix)
            assert part.numel() == n * n // (context * ulysses)
            there = [product_on_grid(*grid, length=n).on(other * ulysses + column) for other in range(context)]
            gathered = torch.cat([each.shard(values[None])[0] for each in there])
            found[row] += part @ gathered
    torch.testing.assert_close(found.flatten(0, 1), matrix @ values, rtol=0, atol=1e-12)
