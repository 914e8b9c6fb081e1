"""The inverse of triangular matrices, and sliding products, against loops over their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from costmodel.tensor import Tensor as Traced
from costmodel.trace import Tracer, Widths
from tests.ops.checking import Case, Sizes, check, named
from validate.executor import Executor

sizes = st.fixed_dictionaries(
    {"B": st.integers(2, 3), "H": st.integers(2, 3), "C": st.integers(2, 5), "w": st.integers(2, 4)}
)


def substituted(c: int) -> int:
    """FLOP of forward substitution, one entry of the inverse after the other: T_ij = -A_ij - sum of A_ik T_kj."""
    return sum(2 for i in range(c) for j in range(i) for _ in range(j + 1, i))


def inverse(a: Tensor) -> Tensor:
    return torch.linalg.inv(torch.eye(a.shape[-1], dtype=a.dtype) + a.tril(-1))


def slid(x: Tensor, taps: Tensor) -> Tensor:
    n = x.shape[2] - taps.shape[1] + 1
    return sum(x[:, :, j : j + n] * taps[:, j, None] for j in range(taps.shape[1]))  # type: ignore[return-value]


def slid_by_place(x: Tensor, taps: Tensor) -> Tensor:
    n, k = taps.shape[2:]
    return sum(x[:, :, j : j + n] * taps[..., j, None] for j in range(k))  # type: ignore[return-value]


CASES = {
    "triangular_inverse": Case(
        lambda ops, a: ops.triangular_inverse(a),
        inverse,
        lambda s: ((s.B, s.H, s.C, s.C),),
        lambda s: {"elementwise": s.B * s.H * substituted(s.C)},
        # two products of C x C matrices; sign and mask
        lambda s: {"contraction": 4 * s.B * s.H * s.C**3, "elementwise": 2 * s.B * s.H * s.C**2},
    ),
    "triangular_inverse, one matrix": Case(
        lambda ops, a: ops.triangular_inverse(a),
        inverse,
        lambda s: ((s.C, s.C),),
        lambda s: {"elementwise": substituted(s.C)},
        lambda s: {"contraction": 4 * s.C**3, "elementwise": 2 * s.C**2},
    ),
    "depthwise": Case(
        lambda ops, x, taps: ops.depthwise(x, taps),
        slid,
        lambda s: ((s.B, s.H, s.C + s.w - 1), (s.H, s.w)),
        lambda s: {"elementwise": 2 * s.w * s.B * s.H * s.C},
        lambda s: {"elementwise": 2 * s.w * s.B * s.H * (s.C + s.w - 1 + s.C)},
    ),
    "depthwise, taps apart": Case(
        lambda ops, x, taps: ops.depthwise(x, taps, 3),
        lambda x, taps: torch.nn.functional.conv1d(x, taps[:, None], dilation=3, groups=x.shape[1]),
        lambda s: ((s.B, s.H, s.C + 3 * (s.w - 1)), (s.H, s.w)),
        lambda s: {"elementwise": 2 * s.w * s.B * s.H * s.C},
        lambda s: {"elementwise": 2 * s.w * s.B * s.H * (s.C + 3 * (s.w - 1) + s.C)},
    ),
    "dynamic_depthwise": Case(
        lambda ops, x, taps: ops.dynamic_depthwise(x, taps),
        slid_by_place,
        lambda s: ((s.B, s.H, s.C + s.w - 1, 3), (s.B, s.H, s.C, s.w)),
        lambda s: {"elementwise": 2 * s.w * s.B * s.H * s.C * 3},
        lambda s: {"elementwise": 4 * s.w * s.B * s.H * s.C * 3},
    ),
}


@pytest.mark.parametrize("case", named(CASES))
@given(sizes=sizes)
@settings(max_examples=15)
def test_matrices(case: Case, sizes: Sizes) -> None:
    check(case, sizes)


@pytest.mark.parametrize("c", [1, 2, 3, 64])
def test_what_is_not_below_the_diagonal_is_not_read(c: int) -> None:
    a = torch.randn(c, c, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / c
    ops = Executor(torch.float64)
    spoilt = a + torch.full((c, c), 7, dtype=torch.float64).triu()
    torch.testing.assert_close(ops.triangular_inverse(spoilt), inverse(a), rtol=0, atol=1e-12)


def test_what_is_refused() -> None:
    ops = Tracer(Widths(4, 4, 4), 1)
    with pytest.raises(ValueError, match=r"only square matrices have inverses, not \(2, 3\)"):
        ops.triangular_inverse(Traced.new((2, 3), 4))
    with pytest.raises(ValueError, match=r"rows \(1, 1, 5, 2\) are not those that taps \(1, 1, 5, 2\) slide over"):
        ops.dynamic_depthwise(Traced.new((1, 1, 5, 2), 4), Traced.new((1, 1, 5, 2), 4))
