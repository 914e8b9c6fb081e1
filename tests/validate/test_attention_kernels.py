"""Flash kernels and products in memory against attention written out in float64, within bounds that follow from dtype.

u is the unit roundoff: a rounded number is off by at most u times itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from costmodel.masks import Mask
from validate import attention
from validate.template import mix, mixing_matrix

#: Unit roundoff: half the gap between 1 and the next number.
ROUNDOFF = {dtype: torch.finfo(dtype).eps / 2 for dtype in (torch.bfloat16, torch.float32, torch.float64)}


@dataclass(frozen=True)
class Problem:
    """Tensors of one dtype, and what float64 makes of the same numbers."""

    q: Tensor
    k: Tensor
    v: Tensor
    gradient: Tensor
    mask: Mask
    scale: float

    @property
    def qkv(self) -> attention.Triple:
        return self.q, self.k, self.v

    @property
    def roundoff(self) -> float:
        return ROUNDOFF[self.q.dtype]

    @property
    def largest_score(self) -> Tensor:
        """A bound on any score and, with it, on the error of one: the products of its sum without their signs."""
        k = self.k.repeat_interleave(self.q.shape[1] // self.k.shape[1], 1)
        return (self.scale * self.q.double().abs() @ k.double().abs().mT).amax()

    @property
    def lse(self) -> Tensor:
        k = self.k.repeat_interleave(self.q.shape[1] // self.k.shape[1], 1)
        scores = self.scale * self.q.double() @ k.double().mT
        return scores.masked_fill(~attention.kept(self.mask, *scores.shape[2:]), -torch.inf).logsumexp(-1)


@st.composite
def problems(draw: st.DrawFn, dtype: torch.dtype, fits_flash: bool = False) -> Problem:
    kv_heads, before = draw(st.integers(1, 2)), draw(st.integers(0, 9))
    heads, n_q, d = kv_heads * draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 9))
    mask = Mask(draw(st.booleans()), None if fits_flash else draw(st.none() | st.integers(1, 12)))
    n_k = n_q + (before if mask.causal or mask.window is None else 0)
    e = d if fits_flash else draw(st.integers(1, 9))
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shapes = (heads, n_q, d), (kv_heads, n_k, d), (kv_heads, n_k, e), (heads, n_q, e)
    tensors = [torch.randn(2, *shape, generator=random).to(dtype) for shape in shapes]
    return Problem(*tensors, mask, d**-0.5)


@given(st.booleans(), st.none() | st.integers(1, 6), st.integers(1, 6), st.integers(0, 5))
def test_masks_written_out(causal: bool, window: int | None, n_q: int, before: int) -> None:
    n_k = n_q + before
    keep = attention.kept(Mask(causal, window), n_q, n_k)
    for query in range(n_q):
        for key in range(n_k):
            ahead = key - (before + query)
            assert keep[query, key] == ((ahead <= 0 or not causal) and (window is None or abs(ahead) < window))


def assert_within(what: str, actual: Tensor, expected: Tensor, bound: Tensor) -> None:
    worst = ((actual.double() - expected).abs() / bound).max()
    assert worst <= 1, f"{what} is off by {worst:.3g} times the bound"


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("dtype", ROUNDOFF)
@settings(max_examples=40)
@given(data=st.data())
def test_forward(dtype: torch.dtype, flash: bool, data: st.DataObject) -> None:
    given_ = data.draw(problems(dtype))
    out, lse = attention.forward(given_.qkv, given_.mask, given_.scale, flash)
    assert out.dtype == dtype
    # Weights are rounded before they meet the values, and so is the result; one piece merged with another is rounded
    # twice more. Scores and sums of up to 50 terms are in float32 (or float64).
    size = mixing_matrix(given_.q, given_.k, given_.mask, given_.scale) @ _for_heads(given_, given_.v.abs())
    u, wide = given_.roundoff, max(ROUNDOFF[torch.float64], min(given_.roundoff, ROUNDOFF[torch.float32]))
    scores = 1 + given_.largest_score
    assert_within("out", out, mix(*given_.qkv, given_.mask, given_.scale), (4 * u + 200 * wide * scores) * size + 1e-30)
    assert_within("lse", lse, given_.lse, 200 * wide * scores * torch.ones_like(given_.lse))


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("dtype", ROUNDOFF)
@settings(max_examples=40)
@given(data=st.data())
def test_backward(dtype: torch.dtype, flash: bool, data: st.DataObject) -> None:
    given_ = data.draw(problems(dtype))
    exact = [x.double().requires_grad_() for x in given_.qkv]
    out = mix(*exact, given_.mask, given_.scale)
    expected = torch.autograd.grad(out, exact, given_.gradient.double())
    known = out.detach().to(dtype), given_.lse.to(torch.promote_types(dtype, torch.float32)), given_.gradient
    found = attention.backward(given_.qkv, known, given_.mask, given_.scale, flash)
    for name, actual, value, bound in zip("qkv", found, expected, _gradient_bounds(given_, out.detach()), strict=True):
        assert actual.dtype == dtype
        assert_within(f"gradient of {name}", actual, value, bound)


def _gradient_bounds(given_: Problem, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far gradients may be off: a few roundings of each factor of each product, all errors of one sign.

    delta = rowsum(g out) is off by one rounding of out; p and ds = p (g v^T - delta) are rounded before they are
    multiplied, and each result after it (and once more where two stretches of keys are added).
    """
    q, k, v = given_.q.double().abs(), _for_heads(given_, given_.k.abs()), _for_heads(given_, given_.v)
    g, p = given_.gradient.double(), mixing_matrix(given_.q, given_.k, given_.mask, given_.scale)
    # float32 holds scores and sums of up to 50 terms, and exp makes an error in a score a relative one.
    wide = max(ROUNDOFF[torch.float64], min(given_.roundoff, ROUNDOFF[torch.float32]))
    u = 4 * given_.roundoff + 200 * wide * (1 + given_.largest_score)
    delta = (g * out).abs().sum(-1, keepdim=True)
    ds = p * (g.abs() @ v.abs().mT + delta)
    dk, dv = ds.mT @ q, p.mT @ g.abs()
    groups = given_.k.shape[1]
    summed = (x.unflatten(1, (groups, -1)).sum(2) for x in (dk * given_.scale, dv))
    return tuple(u * x + 1e-30 for x in (given_.scale * ds @ k, *summed))  # type: ignore[return-value]


def _for_heads(given_: Problem, x: Tensor) -> Tensor:
    return x.double().repeat_interleave(given_.q.shape[1] // x.shape[1], 1)


@settings(max_examples=40)
@given(data=st.data(), n_first=st.integers(1, 10))
def test_merging_two_stretches_of_keys_is_attention_over_both(data: st.DataObject, n_first: int) -> None:
    given_ = data.draw(problems(torch.float64, fits_flash=True))
    more = torch.randn(*given_.k.shape[:2], n_first, given_.k.shape[3], dtype=torch.float64)
    pieces = [
        attention.forward((given_.q, k, v), Mask(), given_.scale, flash=True)
        for k, v in ((given_.k, given_.v), (more, more))
    ]
    out, lse = attention.merge(*pieces[0], *pieces[1])
    both = given_.q, torch.cat([given_.k, more], 2), torch.cat([given_.v, more], 2)
    torch.testing.assert_close(out, mix(*both, Mask(), given_.scale))
    torch.testing.assert_close(lse, attention.forward(both, Mask(), given_.scale, flash=False)[1])


def test_queries_that_see_no_key_give_zeros_not_nan() -> None:
    nothing = torch.zeros(1, 1, 2, 3), torch.full((1, 1, 2), -torch.inf)
    out, lse = attention.merge(*nothing, *nothing)
    assert torch.equal(out, nothing[0])
    assert torch.equal(lse, nothing[1])
    some = torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 2)
    out, lse = attention.merge(*nothing, *some)
    assert torch.equal(out, some[0])
    assert torch.equal(lse, some[1])


@pytest.mark.parametrize("dtype", ROUNDOFF)
def test_flash_kernels_run_where_they_apply(dtype: torch.dtype) -> None:
    """What they do not know would otherwise quietly take the other path in every test."""
    q = torch.zeros(1, 1, 4, 8, dtype=dtype)
    assert attention._flash_applies(q, q, q, Mask(causal=True))
    assert not attention._flash_applies(q, q, q, Mask(causal=True, window=2))
    assert not attention._flash_applies(q, q, q, Mask(causal=True, stride=2))
    assert not attention._flash_applies(q, q, q[..., :4], Mask(causal=True))
    assert not attention._flash_applies(q, q[:, :, :0], q[:, :, :0], Mask())
    assert not attention._flash_applies(q, q.to(torch.float16), q.to(torch.float16), Mask())


@pytest.mark.parametrize("flash", [False, True])
def test_no_heads(flash: bool) -> None:
    """As where no head of a rank takes part: nothing comes of it, in the right shape."""
    q, k = torch.randn(2, 0, 3, 4), torch.randn(2, 0, 5, 4)
    out, lse = attention.forward((q, k, k), Mask(), 1.0, flash)
    assert (out.shape, lse.shape) == ((2, 0, 3, 4), (2, 0, 3))
    gradients = attention.backward((q, k, k), (out, lse, out), Mask(), 1.0, flash)
    assert [x.shape for x in gradients] == [q.shape, k.shape, k.shape]
