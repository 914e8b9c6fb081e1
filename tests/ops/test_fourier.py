"""Fourier transforms against the matrix of the transform, written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from costmodel.composite import complex_of, imaginary_part, real_part
from costmodel.ops.vocabulary import Vocabulary
from costmodel.tensor import Tensor as Traced
from costmodel.trace import Tracer, Widths
from tests.ops.checking import Case, Sizes, check, check_values, mixed, named
from validate.executor import Executor

sizes = st.fixed_dictionaries(
    {"B": st.integers(2, 3), "L": st.sampled_from([1, 2, 3, 4, 5, 8]), "C": st.integers(2, 3)}
)
even = st.fixed_dictionaries({"B": st.integers(2, 3), "L": st.sampled_from([2, 4, 6, 8]), "C": st.integers(2, 3)})


def turns(n: int, rows: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi j k / n, for k below ``rows``."""
    angles = 2 * math.pi / n * torch.outer(torch.arange(rows).double(), torch.arange(n).double())
    return angles.cos(), angles.sin()


def transformed(x: Tensor, sign: int) -> Tensor:
    """The sum of x_j exp(sign 2 pi i j k / n) along axis 1 of pairs."""
    cos, sin = (table.to(x.dtype) for table in turns(x.shape[1], x.shape[1]))
    real, imaginary = x[..., 0], x[..., 1]
    turned = (
        mixed(cos, real, 1) - sign * mixed(sin, imaginary, 1),
        mixed(cos, imaginary, 1) + sign * mixed(sin, real, 1),
    )
    return torch.stack(turned, -1)


def half(x: Tensor) -> Tensor:
    cos, sin = (table.to(x.dtype) for table in turns(x.shape[1], x.shape[1] // 2 + 1))
    return torch.stack((mixed(cos, x, 1), -mixed(sin, x, 1)), -1)


def from_half(bins: Tensor) -> Tensor:
    """The bins that are left out are the conjugates of those that are there."""
    inner = bins[:, 1:-1].flip(1) * torch.tensor([1, -1], dtype=bins.dtype)
    ends = bins * torch.tensor([1, 0], dtype=bins.dtype)
    whole = torch.cat((ends[:, :1], bins[:, 1:-1], ends[:, -1:], inner), 1)
    return (transformed(whole, 1) / whole.shape[1])[..., 0]


def pairs(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.contiguous())


COMPLEX = {
    "fft": Case(
        lambda ops, x: ops.fft(x, 1),
        lambda x: transformed(x, -1),
        lambda s: ((s.B, s.L, s.C, 2),),
        lambda s: {"fft": 5 * s.B * s.C * s.L * math.log2(s.L)},
        lambda s: {"fft": 5 * s.B * s.C * s.L * math.log2(s.L)},
    ),
    "inverse_fft": Case(
        lambda ops, x: ops.inverse_fft(x, 1),
        lambda x: transformed(x, 1) / x.shape[1],
        lambda s: ((s.B, s.L, s.C, 2),),
        lambda s: {"fft": 5 * s.B * s.C * s.L * math.log2(s.L)},
        lambda s: {"fft": 5 * s.B * s.C * s.L * math.log2(s.L)},
    ),
    # 4 products and 2 sums
    "complex_mul": Case(
        lambda ops, a, b: ops.complex_mul(a, b),
        lambda a, b: torch.view_as_real(pairs(a) * pairs(b)),
        lambda s: ((s.B, s.L, 2), (s.B, s.L, 2)),
        lambda s: {"elementwise": 6 * s.B * s.L},
        lambda s: {"elementwise": 12 * s.B * s.L},
    ),
    "complex_mul, conjugate": Case(
        lambda ops, a, b: ops.complex_mul(a, b, conjugate=True),
        lambda a, b: torch.view_as_real(pairs(a) * pairs(b).conj()),
        lambda s: ((s.B, s.L, 2), (s.B, s.L, 2)),
        lambda s: {"elementwise": 6 * s.B * s.L},
        lambda s: {"elementwise": 12 * s.B * s.L},
    ),
    "complex_mul, a filter for a batch": Case(
        lambda ops, a, b: ops.complex_mul(a, b),
        lambda a, b: torch.view_as_real(pairs(a) * pairs(b)),
        lambda s: ((s.B, s.C, 2), (s.C, 2)),
        lambda s: {"elementwise": 6 * s.B * s.C},
        lambda s: {"elementwise": 12 * s.B * s.C, "reduction": 2 * s.B * s.C},
    ),
    "parts": Case(
        lambda ops, x: complex_of(ops, imaginary_part(ops, x), real_part(ops, x)),
        lambda x: x.flip(-1),
        lambda s: ((s.B, s.L, 2),),
        lambda s: {},
        lambda s: {"elementwise": 2 * s.B * s.L},  # the two parts' gradients, padded and added
    ),
}

REAL = {
    "real_fft": Case(
        lambda ops, x: ops.real_fft(x, 1),
        half,
        lambda s: ((s.B, s.L, s.C),),
        lambda s: {"fft": 2.5 * s.B * s.C * s.L * math.log2(s.L)},
        lambda s: {"fft": 2.5 * s.B * s.C * s.L * math.log2(s.L), "elementwise": s.B * s.C * (s.L + 2)},
    ),
    "inverse_real_fft": Case(
        lambda ops, x: ops.inverse_real_fft(x, 1),
        from_half,
        lambda s: ((s.B, s.L / 2 + 1 if not isinstance(s.L, int) else s.L // 2 + 1, s.C, 2),),
        lambda s: {"fft": 2.5 * s.B * s.C * s.L * math.log2(s.L)},
        lambda s: {"fft": 2.5 * s.B * s.C * s.L * math.log2(s.L), "elementwise": s.B * s.C * (s.L + 2)},
    ),
}


@pytest.mark.parametrize("case", named(COMPLEX))
@given(sizes=sizes)
@settings(max_examples=12)
def test_complex(case: Case, sizes: Sizes) -> None:
    check(case, sizes)


@pytest.mark.parametrize("case", named(REAL))
@given(sizes=even)
@settings(max_examples=12)
def test_real(case: Case, sizes: Sizes) -> None:
    check(case, sizes)


@given(sizes=even)
@settings(max_examples=12)
def test_long_convolution(sizes: Sizes) -> None:
    """y_i = sum over j <= i of h_j x_{i-j}, by a transform of twice the length."""

    def method(ops: Vocabulary[Tensor], x: Tensor, h: Tensor) -> Tensor:
        n = ops.shape(x)[1]
        a, b = (ops.real_fft(ops.pad(y, 1, 0, 2 * n), 1) for y in (x, h))
        return ops.slice(ops.inverse_real_fft(ops.complex_mul(a, b), 1), 1, 0, n)

    def reference(x: Tensor, h: Tensor) -> Tensor:
        n = x.shape[1]
        return torch.stack([sum(h[:, j] * x[:, i - j] for j in range(i + 1)) for i in range(n)], 1)  # type: ignore[misc]

    check_values(Case(method, reference, lambda s: ((s.B, s.L), (s.B, s.L))), sizes)


def test_low_precision_is_kept_outside() -> None:
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    ops = Executor(torch.bfloat16)
    bins = ops.real_fft(x, 1)
    assert bins.dtype == torch.bfloat16
    torch.testing.assert_close(bins, torch.view_as_real(torch.fft.rfft(x.float(), dim=1)).bfloat16())
    assert ops.inverse_real_fft(bins, 1).dtype == torch.bfloat16


def test_what_is_refused() -> None:
    ops = Tracer(Widths(4, 4, 4), 1)
    with pytest.raises(ValueError, match=r"pairs on a last axis of size 2, which shape \(4, 3\) has not"):
        ops.fft(Traced.new((4, 3), 4), 0)
    with pytest.raises(ValueError, match="7 cannot be cut into 2 equal parts"):
        ops.real_fft(Traced.new((7,), 4), 0)
