"""Associative scans against loops over their definition, and the combinations they make."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from costmodel.ops.affine_scan import AffineScan, combinations
from tests.ops.checking import Case, Sizes, check, named
from validate.executor import Executor

sizes = st.fixed_dictionaries({"B": st.integers(2, 3), "L": st.integers(2, 9), "C": st.integers(2, 3)})


def looped(x: Tensor, a: Tensor) -> Tensor:
    """Token by token along the second axis."""
    states = [x[:, 0]]
    for t in range(1, x.shape[1]):
        states.append(a[:, t] * states[-1] + x[:, t])
    return torch.stack(states, 1)


def looped_pairs(x: Tensor, a: Tensor) -> Tensor:
    return torch.view_as_real(looped(*(torch.view_as_complex(y.contiguous()) for y in (x, a))))


def combined(n: int) -> int:
    """Pairs that are combined, level by level: neighbours going up, all but the first of the others coming down."""
    filled = 1
    while filled < n:
        filled *= 2
    total = 0
    while filled > 1:
        total += filled // 2 + filled // 2 - 1
        filled //= 2
    return total


CASES = {
    "affine_scan": Case(
        lambda ops, x, a: ops.affine_scan(x, a, 1),
        looped,
        lambda s: ((s.B, s.L, s.C), (s.B, s.L, s.C)),
        lambda s: {"elementwise": 3 * s.B * s.C * combined(s.L)},
        lambda s: {"elementwise": 3 * s.B * s.C * combined(s.L) + s.B * s.L * s.C},
    ),
    "affine_scan, shared factors": Case(
        lambda ops, x, a: ops.affine_scan(x, a, 1),
        looped,
        lambda s: ((s.B, s.L, s.C), (1, s.L, s.C)),
        lambda s: {"elementwise": (2 * s.B + 1) * s.C * combined(s.L)},
        lambda s: {
            "elementwise": (2 * s.B + 1) * s.C * combined(s.L) + s.B * s.L * s.C,
            "reduction": s.B * s.L * s.C,
        },
    ),
    "affine_scan, complex": Case(
        lambda ops, x, a: ops.affine_scan(x, a, 1, pairs=True),
        looped_pairs,
        lambda s: ((s.B, s.L, s.C, 2), (1, s.L, s.C, 2)),
        lambda s: {"elementwise": (8 * s.B + 6) * s.C * combined(s.L)},
        lambda s: {
            "elementwise": (8 * s.B + 6) * s.C * combined(s.L) + 6 * s.B * s.L * s.C,
            "reduction": 2 * s.B * s.L * s.C,
        },
    ),
}


@pytest.mark.parametrize("case", named(CASES))
@given(sizes=sizes)
@settings(max_examples=10)
def test_affine_scan(case: Case, sizes: Sizes) -> None:
    check(case, sizes)


@given(n=st.integers(1, 5000))
def test_combinations_are_those_of_all_levels(n: int) -> None:
    assert combinations(n) == combined(n)


def test_combinations_are_fewer_than_two_for_each_of_a_power_of_two() -> None:
    """As many as jax.lax.associative_scan makes: 2 * 1024 - 2 - 10."""
    assert combinations(1024) == 2036


@pytest.mark.parametrize("pairs", [False, True])
def test_the_other_way_round_with_conjugates(pairs: bool) -> None:
    """What only backward rules use, by finite differences."""
    shape = (2, 5, 2) if pairs else (2, 5)
    primitive = AffineScan(1, pairs, reverse=True, conjugate=pairs)
    x, a = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def method(x: Tensor, a: Tensor) -> Any:
        return Executor(torch.float64).apply(primitive, x, a)[0]

    torch.autograd.gradcheck(method, (x, a))
