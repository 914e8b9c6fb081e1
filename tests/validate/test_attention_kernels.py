"""Flash kernels and blocks of scores against attention written out in float64, within bounds that follow from dtype.

u is the unit roundoff: a rounded number is off by at most u times itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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


@contextmanager
def blocks(small: bool) -> Iterator[None]:
    """Blocks so small that a small problem has several, or those that are used."""
    with patch.multiple(attention, ROWS=8, COLUMNS=12, FEWEST_ROWS=4) if small else nullcontext():
        yield


@st.composite
def masks(draw: st.DrawFn) -> tuple[Mask, int, int]:
    """A mask of each kind, with numbers of queries and of keys that it is for."""
    n_q, before = draw(st.integers(1, 40)), draw(st.integers(0, 20))
    kind = draw(st.sampled_from(["all", "causal", "window", "both sides", "stride"]))
    window = draw(st.integers(1, 30))
    if kind == "both sides":
        ahead = draw(st.integers(0, min(window - 1, before)))
        return Mask(window=window, ahead=ahead), n_q, n_q + before
    if kind == "stride":
        stride = draw(st.integers(2, 5))
        return Mask(causal=True, stride=stride), n_q * stride, n_q + before
    return Mask(kind != "all", window if kind == "window" else None), n_q, n_q + before


@pytest.mark.parametrize("small", [True, False])
@given(drawn=masks(), flash=st.booleans())
def test_pieces_are_the_pairs_of_the_mask_each_once(small: bool, drawn: tuple[Mask, int, int], flash: bool) -> None:
    mask, n_q, n_k = drawn
    seen = torch.zeros(n_q, n_k, dtype=torch.int)
    with blocks(small):
        q, k = torch.zeros(1, 1, n_q, 2), torch.zeros(1, 1, n_k, 2)
        work = attention._Work.of((q, k, k), mask, 1.0, flash)
        for piece in work.pieces:
            size = [end - start for start, end in (piece.rows, piece.columns)]
            part = seen[slice(*piece.rows), slice(*piece.columns)]
            bias = work.bias(piece, q)
            keep = torch.ones(size, dtype=torch.bool) if bias is None else bias == 0
            part += keep.tril() if piece.seen is attention.Seen.CAUSAL else keep
            if piece.seen is attention.Seen.SOME:
                assert size[0] <= attention.ROWS
                assert size[1] <= attention.COLUMNS + attention.ROWS
    assert torch.equal(seen, attention.kept(mask, n_q, n_k).int())


def assert_within(what: str, actual: Tensor, expected: Tensor, bound: Tensor) -> None:
    worst = ((actual.double() - expected).abs() / bound).max()
    assert worst <= 1, f"{what} is off by {worst:.3g} times the bound"


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("dtype", ROUNDOFF)
@settings(max_examples=60)
@given(data=st.data(), small=st.booleans())
def test_forward(dtype: torch.dtype, flash: bool, data: st.DataObject, small: bool) -> None:
    given_ = data.draw(problems(dtype))
    with blocks(small):
        out, lse = attention.forward(given_.qkv, given_.mask, given_.scale, flash)
    assert out.dtype == dtype
    # Weights are rounded before they meet the values, and so is the result; one piece merged with another is rounded
    # twice more. Scores and sums of up to 50 terms are in float32 (or float64).
    size = mixing_matrix(given_.q, given_.k, given_.mask, given_.scale) @ _for_heads(given_, given_.v.abs())
    u, wide = given_.roundoff, max(ROUNDOFF[torch.float64], min(given_.roundoff, ROUNDOFF[torch.float32]))
    scores = 1 + given_.largest_score
    assert_within("out", out, mix(*given_.qkv, given_.mask, given_.scale), (4 * u + 200 * wide * scores) * size + 1e-30)
    # Torch's kernel takes a faster exponential where its result is rounded to bfloat16: 1e-5 off at most, as tried.
    exponential = u / 64 if dtype == torch.bfloat16 and flash else 200 * wide
    assert_within("lse", lse, given_.lse, exponential * scores * torch.ones_like(given_.lse))


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("dtype", ROUNDOFF)
@settings(max_examples=60)
@given(data=st.data(), small=st.booleans())
def test_backward(dtype: torch.dtype, flash: bool, data: st.DataObject, small: bool) -> None:
    given_ = data.draw(problems(dtype))
    exact = [x.double().requires_grad_() for x in given_.qkv]
    out = mix(*exact, given_.mask, given_.scale)
    expected = torch.autograd.grad(out, exact, given_.gradient.double())
    known = out.detach().to(dtype), given_.lse.to(torch.promote_types(dtype, torch.float32)), given_.gradient
    with blocks(small):
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
    running = [x.clone() for x in nothing]
    out, lse = attention.merge(*running, *nothing)
    assert out is running[0], "merging is in place"
    assert torch.equal(out, nothing[0])
    assert torch.equal(lse, nothing[1])
    some = torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 2)
    out, lse = attention.merge(*running, *some)
    assert torch.equal(out, some[0])
    assert torch.equal(lse, some[1])
    out, lse = attention.merge(*running, *nothing)
    assert torch.equal(out, some[0])
    assert torch.equal(lse, some[1])


@pytest.mark.parametrize("flash", [True, False])
def test_queries_that_see_no_key_have_no_gradients(flash: bool) -> None:
    mask = Mask(causal=True, stride=3)  # the first 2 queries have not reached the end of the first key's 3 tokens
    q, k, v, gradient = (torch.randn(1, 1, n, 3) for n in (6, 2, 2, 6))
    out, lse = attention.forward((q, k, v), mask, 1.0, flash)
    assert torch.equal(out[:, :, :2], torch.zeros(1, 1, 2, 3))
    assert torch.equal(lse[:, :, :2], torch.full((1, 1, 2), -torch.inf))
    found = attention.backward((q, k, v), (out, lse, gradient), mask, 1.0, flash)
    assert all(x.isfinite().all() for x in found)
    assert torch.equal(found[0][:, :, :2], torch.zeros(1, 1, 2, 3))


@pytest.mark.parametrize("dtype", ROUNDOFF)
def test_flash_kernels_run_where_they_apply(dtype: torch.dtype) -> None:
    """What they do not know would otherwise quietly take the other path in every test."""
    q = torch.zeros(1, 2, 4, 8, dtype=dtype)
    masks = Mask(), Mask(causal=True), Mask(causal=True, window=2), Mask(window=2), Mask(causal=True, stride=2)
    for mask in masks:
        assert attention._Work.of((q, q[:, :1], q[:, :1]), mask, 1.0, flash=True).flash
    assert not attention._flash_applies(q, q, q[..., :4])
    assert not attention._flash_applies(q, q[:, :, :0], q[:, :, :0])
    assert not attention._flash_applies(q, q.to(torch.float16), q.to(torch.float16))


class Largest(TorchDispatchMode):
    """The most elements that any new tensor has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for x in result if isinstance(result, tuple) else (result,):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in known:
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.itemsize)
        return result


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("mask", [Mask(causal=True), Mask(causal=True, window=10), Mask(window=100)])
def test_memory_is_that_of_a_block(mask: Mask, flash: bool) -> None:
    """Neither all scores nor a copy of the keys for every query head that shares them."""
    heads, n, d = 4, 300, 2
    q, k, v = torch.randn(1, heads, n, d), torch.randn(1, 1, n, d), torch.randn(1, 1, n, d)
    with blocks(small=True), Largest() as forward:
        out, lse = attention.forward((q, k, v), mask, 0.3, flash)
    with blocks(small=True), Largest() as backward:
        attention.backward((q, k, v), (out, lse, out), mask, 0.3, flash)
    assert max(forward.elements, backward.elements) <= q.numel() < n * n


@pytest.mark.parametrize("flash", [False, True])
def test_no_heads(flash: bool) -> None:
    """As where no head of a rank takes part: nothing comes of it, in the right shape."""
    q, k = torch.randn(2, 0, 3, 4), torch.randn(2, 0, 5, 4)
    out, lse = attention.forward((q, k, k), Mask(), 1.0, flash)
    assert (out.shape, lse.shape) == ((2, 0, 3, 4), (2, 0, 3))
    gradients = attention.backward((q, k, k), (out, lse, out), Mask(), 1.0, flash)
    assert [x.shape for x in gradients] == [q.shape, k.shape, k.shape]
