"""Choosing, ordering, gathering and scattering by indices, against sorting by hand and one-hot products."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from costmodel.ops.vocabulary import Vocabulary
from costmodel.program import operations
from costmodel.tensor import Tensor as Traced
from costmodel.trace import Tracer, Widths, trace
from tests.ops.checking import Case, Index, Sizes, check, named
from validate.executor import Executor

sizes = st.fixed_dictionaries(
    {"B": st.integers(2, 3), "L": st.integers(4, 6), "k": st.integers(1, 4), "C": st.integers(2, 3)}
)


def one_hot(indices: Tensor, size: int) -> Tensor:
    return (indices[..., None] == torch.arange(size)).double()


def ordered(x: Tensor, descending: bool) -> Tensor:
    rows = [torch.stack(sorted(row, key=lambda entry: entry.item(), reverse=descending)) for row in x.flatten(0, -2)]
    return torch.stack(rows).view(x.shape)


def thinned(heads: Tensor, rows: int) -> Tensor:
    """[H, rows, 3 rows] with ones where a row is taken: each third, from the head's number on."""
    first = heads.remainder(3)[:, None] + 3 * torch.arange(rows)
    return one_hot(first, 3 * rows)


CASES = {
    "top_k": Case(
        lambda ops, x: ops.top_k(x, ops.shape(x)[-1] - 3)[0],
        lambda x: ordered(x, True)[..., : x.shape[-1] - 3],
        lambda s: ((s.B, s.C, s.k + 3),),
        lambda s: {"sort": s.B * s.C * (s.k + 3) * (1 + math.log2(s.k))},
        lambda s: {"gather": s.B * s.C * s.k, "elementwise": s.B * s.C * s.k},
    ),
    "sort": Case(
        lambda ops, x: ops.sort(x)[0],
        lambda x: ordered(x, False),
        lambda s: ((s.B, s.L),),
        lambda s: {"sort": s.B * s.L * math.log2(s.L)},
        lambda s: {"gather": s.B * s.L, "elementwise": s.B * s.L},
    ),
    "sort, descending": Case(
        lambda ops, x: ops.sort(x, descending=True)[0],
        lambda x: ordered(x, True),
        lambda s: ((s.B, s.L),),
        lambda s: {"sort": s.B * s.L * math.log2(s.L)},
        lambda s: {"gather": s.B * s.L, "elementwise": s.B * s.L},
    ),
    "gather": Case(
        lambda ops, x, i: ops.gather(x, i, 1),
        lambda x, i: torch.einsum("bmkn,bnc->bmkc", one_hot(i, x.shape[1]).to(x), x),
        lambda s: ((s.B, s.L, s.C), Index((s.B, 2, s.k), s.L)),
        lambda s: {"gather": 2 * s.B * s.k * s.C},
        lambda s: {"gather": 2 * s.B * s.k * s.C, "elementwise": 2 * s.B * s.k * s.C},
        # read: 2 k C elements of 4 bytes and as many indices of 8; written: the elements
        lambda s: (2 * s.B * s.k * (4 * s.C + 8), 8 * s.B * s.k * s.C),
    ),
    "gather, of a table": Case(
        lambda ops, x, i: ops.gather(x, i, 0),
        lambda x, i: torch.einsum("bn,nc->bc", one_hot(i, x.shape[0]).to(x), x),
        lambda s: ((s.L, s.C), Index((s.B,), s.L)),
        lambda s: {"gather": s.B * s.C},
        lambda s: {"gather": s.B * s.C, "elementwise": s.B * s.C},
        lambda s: (s.B * (4 * s.C + 8), 4 * s.B * s.C),
    ),
    "gather, along the last axis": Case(
        lambda ops, x, i: ops.gather(x, i, 2),
        lambda x, i: torch.einsum("bckn,bcn->bck", one_hot(i, x.shape[2]).to(x), x),
        lambda s: ((s.B, s.C, s.L), Index((s.B, s.C, s.k), s.L)),
        lambda s: {"gather": s.B * s.k * s.C},
        lambda s: {"gather": s.B * s.k * s.C, "elementwise": s.B * s.k * s.C},
        lambda s: (s.B * s.C * s.k * 12, 4 * s.B * s.k * s.C),
    ),
    "scatter_add": Case(
        lambda ops, x, i: ops.scatter_add(x, i, 1, 5),
        lambda x, i: torch.einsum("bmkn,bmkc->bnc", one_hot(i, 5).to(x), x),
        lambda s: ((s.B, s.L, s.k, s.C), Index((s.B, s.L, s.k), 5)),
        lambda s: {"gather": s.B * s.L * s.k * s.C, "elementwise": s.B * s.L * s.k * s.C},
        lambda s: {"gather": s.B * s.L * s.k * s.C},
        # read: elements, indices, the places that are added to; written: zeros, then those places
        lambda s: (s.B * s.L * s.k * (8 * s.C + 8), 4 * s.B * s.C * (5 + s.L * s.k)),
    ),
    "thin": Case(
        lambda ops, x, i: ops.thin(x, i, 3),
        lambda x, i: torch.einsum("hmn,bhnc->bhmc", thinned(i, x.shape[2] // 3).to(x), x),
        lambda s: ((s.B, s.L, 3 * s.k, s.C), Index((s.L,), 50)),
        lambda s: {"gather": s.B * s.L * s.k * s.C},
        lambda s: {"gather": s.B * s.L * s.k * s.C},
        lambda s: (s.L * (4 * s.B * s.k * s.C + 8), 4 * s.B * s.L * s.k * s.C),
    ),
    "spread": Case(
        lambda ops, x, i: ops.spread(x, i, 3),
        lambda x, i: torch.einsum("hmn,bhm->bhn", thinned(i, x.shape[2]).to(x), x),
        lambda s: ((s.B, s.L, s.k), Index((s.L,), 50)),
        lambda s: {"gather": s.B * s.L * s.k},
        lambda s: {"gather": s.B * s.L * s.k},
        lambda s: (s.L * (4 * s.B * s.k + 8), 12 * s.B * s.L * s.k),
    ),
}


@pytest.mark.parametrize("case", named(CASES))
@given(sizes=sizes)
@settings(max_examples=15)
def test_selection(case: Case, sizes: Sizes) -> None:
    check(case, sizes)


@given(sizes=sizes)
@settings(max_examples=10)
def test_indices_say_where_values_come_from(sizes: Sizes) -> None:
    ops, x = Executor(torch.float32), torch.rand(sizes["B"], sizes["L"])
    for values, indices in (ops.top_k(x, sizes["k"]), ops.sort(x), ops.sort(x, descending=True)):
        assert indices.dtype == torch.int64
        torch.testing.assert_close(ops.gather(x, indices, 1), values)


def test_rows_that_are_not_put_back_are_filled() -> None:
    ops = Executor(torch.float32)
    spread = ops.spread(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), ops.numbers(5, 2), 2, -math.inf)
    assert spread.tolist() == [[[-math.inf, 1, -math.inf, 2], [3, -math.inf, 4, -math.inf]]]


def test_heads_are_merged_one_by_one() -> None:
    random = torch.Generator().manual_seed(0)
    (out, lse), (more, more_lse) = (
        (torch.randn(2, heads, 3, 4, generator=random), torch.randn(2, heads, 3, generator=random)) for heads in (5, 2)
    )
    weight = torch.sigmoid(more_lse - lse[:, 1:5:3])[..., None]
    expected = out.clone()
    expected[:, 1:5:3] = (1 - weight) * out[:, 1:5:3] + weight * more
    merged, total = Executor(torch.float32).merge_heads(out, lse.clone(), (more, more_lse), 1, 3)
    torch.testing.assert_close(merged, expected)
    torch.testing.assert_close(total[:, 1:5:3].exp(), lse[:, 1:5:3].exp() + more_lse.exp())
    torch.testing.assert_close(total[:, [0, 2, 3]], lse[:, [0, 2, 3]])


def test_sorting_keeps_the_order_of_what_is_equal() -> None:
    buckets = torch.tensor([[1, 0, 1, 0, 1, 0] * 5])
    values, indices = Executor(torch.float32).sort(buckets)
    assert values.tolist() == [[0] * 15 + [1] * 15]
    assert indices.tolist() == [[*range(1, 30, 2), *range(0, 30, 2)]]


def chosen_blocks(ops: Vocabulary[object], scores: object, keys: object) -> object:
    """Scores of the best blocks times these blocks; what follows from the indices gets no gradient."""
    best, indices = ops.top_k(scores, 2)
    places = ops.cast(indices, "accumulate")
    rows = ops.gather(keys, indices, 1)
    return ops.contract("bk,bkc->bc", ops.add(best, places), rows)


def test_gradients_go_through_values_only() -> None:
    random = torch.Generator().manual_seed(0)
    shapes = ((2, 4), (2, 4, 3))
    inputs = [torch.randn(s, generator=random, dtype=torch.float64, requires_grad=True) for s in shapes]
    ops = Executor(torch.float64)
    torch.autograd.gradcheck(lambda *xs: chosen_blocks(ops, *xs), inputs)

    traced = [Traced.new(shape, 2) for shape in shapes]
    program = trace(Tracer(Widths(2, 4, 4), 1), lambda ops, x, y, _: chosen_blocks(ops, x, y), traced, {}, train=True)
    kinds = [type(leaf.primitive).__name__ for leaf, _ in operations(program.backward)]  # type: ignore[union-attr]
    assert sorted(kinds) == ["Contract", "Contract", "ScatterAdd", "ScatterAdd"]


def test_what_is_refused() -> None:
    ops = Tracer(Widths(4, 4, 4), 1)
    with pytest.raises(ValueError, match=r"indices \(3, 4\) do not begin with the 1 leading axes of \(2, 5\)"):
        ops.gather(Traced.new((2, 5), 4), Traced.new((3, 4), 8), 1)
    with pytest.raises(ValueError, match=r"numbers \(4,\) are not one for each head of \(2, 5, 6\)"):
        ops.thin(Traced.new((2, 5, 6), 4), Traced.new((4,), 8), 2)


@pytest.mark.parametrize("recompute", [False, True])
def test_indices_out_of_a_fused_kernel(recompute: bool) -> None:
    """Selection as one kernel hands out indices only; the scores that it is by get no gradient."""

    def selecting(ops: Any, q: Any, k: Any) -> Any:
        return ops.top_k(ops.contract("bd,bnd->bn", q, k), 2)[1]

    def method(ops: Any, q: Any, k: Any, *_: Any) -> Any:
        return ops.contract("bd,bkd->bk", q, ops.gather(k, ops.fused("select", selecting, q, k), 1))

    random = torch.Generator().manual_seed(0)
    shapes = ((2, 3), (2, 5, 3))
    inputs = [torch.randn(s, generator=random, dtype=torch.float64, requires_grad=True) for s in shapes]
    torch.autograd.gradcheck(lambda *xs: method(Executor(torch.float64), *xs), inputs)
    traced = [Traced.new(shape, 2) for shape in shapes]
    program = trace(Tracer(Widths(2, 4, 4), 1), method, traced, {}, train=True, recompute=recompute)
    # Forward once, and again if recomputed; two products backward, of as many FLOP each as forward.
    assert program.flops()["contraction"] == 2 * 2 * 3 * ((5 + 2) * (1 + recompute) + 2 * 2)
