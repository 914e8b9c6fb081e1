"""Sums, maxima, running sums, masks and softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from costmodel.composite import mean
from costmodel.dims import Shape
from costmodel.masks import Mask
from costmodel.ops.primitive import Reading
from costmodel.ops.vocabulary import Vocabulary
from tests.ops.checking import Case, Counts, Sizes, check, check_values, mixed, named
from validate.executor import Executor

sizes = st.fixed_dictionaries({"B": st.integers(2, 3), "L": st.integers(2, 5), "C": st.integers(2, 4)})


def rows(s: Any) -> tuple[Shape, ...]:
    return ((s.B, s.L, s.C),)


def every(kind: str, times: int = 1) -> Callable[[Any], Counts]:
    return lambda s: {kind: times * s.B * s.L * s.C}


def running(strict: bool, reverse: bool) -> Callable[[Tensor], Tensor]:
    """A running sum as a product with a triangle of ones."""

    def reference(x: Tensor) -> Tensor:
        triangle = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).tril(-1 if strict else 0)
        return mixed(triangle.T if reverse else triangle, x, 1)

    return reference


CASES = {
    "sum": Case(lambda ops, x: ops.sum(x, (0, 2)), lambda x: x.sum((0, 2), True), rows, every("reduction")),
    "mean": Case(
        lambda ops, x: mean(ops, x, (0, 1)),
        lambda x: x.mean((0, 1), True),
        rows,
        lambda s: {"reduction": s.B * s.L * s.C, "elementwise": s.C},
        lambda s: {"elementwise": s.C},
    ),
    "max": Case(
        lambda ops, x: ops.max(x, (1,)),
        lambda x: x.max(1, keepdim=True).values,
        rows,
        every("reduction"),
        every("elementwise", 2),  # compare, times the gradient
    ),
    "softmax": Case(
        lambda ops, x: ops.softmax(x, 0.5, Mask()),
        lambda x: (x / 2).exp() / (x / 2).exp().sum(-1, True),
        rows,
        lambda s: {"elementwise": 3 * s.B * s.L * s.C, "reduction": 2 * s.B * s.L * s.C, "special": s.B * s.L * s.C},
        lambda s: {"elementwise": 4 * s.B * s.L * s.C, "reduction": s.B * s.L * s.C},
    ),
    "softmax over another axis": Case(
        lambda ops, x: ops.permute(ops.softmax(ops.permute(x, (0, 2, 1)), 1, Mask()), (0, 2, 1)),
        lambda x: x.softmax(1),
        rows,
        lambda s: {"elementwise": 3 * s.B * s.L * s.C, "reduction": 2 * s.B * s.L * s.C, "special": s.B * s.L * s.C},
        lambda s: {"elementwise": 4 * s.B * s.L * s.C, "reduction": s.B * s.L * s.C},
    ),
}
for reverse in (False, True):
    for exclusive in (False, True):
        name = "cumsum" + ", reverse" * reverse + ", exclusive" * exclusive
        CASES[name] = Case(
            lambda ops, x, how=(reverse, exclusive): ops.cumsum(x, 1, *how),
            running(exclusive, reverse),
            rows,
            every("reduction"),
            every("reduction"),
        )


@pytest.mark.parametrize("case", named(CASES))
@given(sizes=sizes)
@settings(max_examples=12)
def test_reduction(case: Case, sizes: Sizes) -> None:
    check(case, sizes)


def test_gradient_of_a_maximum_goes_to_all_that_are_equal() -> None:
    x = torch.tensor([[1.0, 2.0, 2.0]], requires_grad=True)
    Executor(torch.float32).max(x, (1,)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 1, 1]]


# Masks ----------------------------------------------------------------------------------------------------------------


def written_out(mask: Mask, strict: bool, n_q: int, n_k: int) -> Tensor:
    """Which pairs are left, one after the other: query i stands at key n_k - n_q + i."""

    def seen(i: int, j: int) -> bool:
        back = n_k - n_q + i - j
        if strict and back == 0:
            return False
        window = mask.window or n_k + n_q
        return (back >= 0 or not mask.causal) and abs(back) < window

    return torch.tensor([[seen(i, j) for j in range(n_k)] for i in range(n_q)])


@given(
    sizes=st.fixed_dictionaries({"B": st.integers(2, 3), "L": st.integers(2, 4), "T": st.integers(0, 3)}),
    mask=st.sampled_from([Mask(), Mask(causal=True), Mask(causal=True, window=2)]),
    strict=st.booleans(),
    fill=st.sampled_from(["0", "-inf"]),
)
@settings(max_examples=40)
def test_masked(sizes: Sizes, mask: Mask, strict: bool, fill: str) -> None:
    case = Case(
        lambda ops, x: ops.masked(x, mask, fill, strict),
        lambda x: torch.where(written_out(mask, strict, *x.shape[1:]), x, float(fill)),
        lambda s: ((s.B, s.L, s.L + s.T),),
        lambda s: {"elementwise": s.B * s.L * (s.L + s.T)},
        lambda s: {"elementwise": s.B * s.L * (s.L + s.T)},
    )
    check(case, sizes)


@given(sizes=sizes)
@settings(max_examples=8)
def test_useful_scores_of_a_softmax(sizes: Sizes) -> None:
    def method(ops: Vocabulary, x: object) -> object:  # type: ignore[type-arg]
        return ops.softmax(x, 1, Mask(causal=True))

    case = Case(method, lambda x: x, lambda s: ((s.B, s.L, s.L),))
    program, _ = case.traced(sizes)
    pairs = sizes["B"] * int(written_out(Mask(causal=True), False, sizes["L"], sizes["L"]).sum())
    assert program.flops(Reading.USEFUL)["special"] == pairs
    case = Case(
        method,
        lambda x: torch.where(written_out(Mask(causal=True), False, *x.shape[1:]), x, -torch.inf).softmax(-1),
        lambda s: ((s.B, s.L, s.L),),
    )
    check_values(case, sizes)
