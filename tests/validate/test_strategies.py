"""Strategies of the pairs carry by themselves: q, k and v in, mixed values and their gradients out."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from costmodel.carries.pairs import Pairs
from costmodel.masks import Mask
from costmodel.ops.mesh import Axis
from costmodel.strategy import Situation, Strategy, strategies
from tests.validate.drawing import RANKS
from validate.attention import kept
from validate.counting import Watched
from validate.launch import Rank, RankPool
from validate.layout import Level, shard, shard_nested
from validate.mesh import Mesh
from validate.template import mix

NAMES = [name for name in strategies.names() if issubclass(Pairs, strategies.get(name).carries)]


@dataclass(frozen=True)
class Problem:
    """Sizes of q [B, H, n, d], k [B, H_kv, L, d] and v [B, H_kv, L, e]; n is L, or 1 when decoding."""

    strategy: Strategy
    sizes: dict[str, int]
    at: Situation
    d: int
    e: int
    seed: int

    @property
    def mask(self) -> Mask:
        return Mask(self.at.causal, self.at.window)

    def tensors(self) -> list[Tensor]:
        """q, k, v, and the gradient of the output."""
        random = torch.Generator().manual_seed(self.seed)
        n = 1 if self.at.phase == "decode" else self.at.length
        heads, kv_heads = self.at.heads, self.at.kv_heads
        shapes = (heads, n, self.d), (kv_heads, self.at.length, self.d), (kv_heads, self.at.length, self.e)
        return [
            torch.randn(self.at.batch, *shape, generator=random, dtype=torch.float64)
            for shape in (*shapes, (heads, n, self.e))
        ]

    def own(self, rank: int, x: Tensor) -> Tensor:
        """A rank's part of the sequence."""
        axes = [axis for name, axis in Mesh.of(self.sizes, rank).axes.items() if name in self.strategy.axes]
        if x.shape[2] == 1:
            return shard(x, 0, *_of(axes[0])) if self.strategy.deals else x
        levels = [Level(axis.size, self.strategy.layouts[axis.name]) for axis in axes]
        return shard_nested(x, 2, levels, [axis.rank for axis in axes])


def _of(axis: Axis) -> tuple[int, int]:
    return axis.size, axis.rank


@st.composite
def problems(draw: st.DrawFn, strategy: Strategy) -> Problem:
    sizes = {axis: draw(st.integers(2, RANKS // 2 ** (len(strategy.axes) - 1))) for axis in strategy.axes}
    ranks = math.prod(sizes.values())
    kv_heads = sizes.get("ulysses", 1) * draw(st.integers(1, 2))
    window = draw(st.integers(1, 9))
    drawn = Situation(
        carry=Pairs,
        length=ranks * draw(st.integers(1, 6)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        causal=True,
        window=None,
        kernel="fused",
        phase="train",
        batch=(ranks if strategy.deals else 1) * draw(st.integers(1, 2)),
        **sizes,
    )
    options = itertools.product(
        ("train", "prefill", "decode"), (True, False), (None, window), ("fused", "vanilla"), (1, 2)
    )
    fitting = [
        at
        for phase, causal, limit, kernel, times in options
        if (phase != "decode" or (causal and limit is None))
        for at in [replace(drawn, phase=phase, causal=causal, window=limit, kernel=kernel, length=drawn.length * times)]
        if strategy.refusal(at) is None
    ]
    assume(fitting)
    at = draw(st.sampled_from(fitting))
    d, e, seed = (draw(st.integers(1, high)) for high in (6, 6, 99))
    return Problem(strategy, sizes, at, d, e, seed)


def run_strategy(rank: Rank, given_: Problem) -> tuple[list[Tensor], int]:
    """This rank's output and gradients of q, k and v, and its useful FLOPs."""
    ops = Watched(torch.float64, Mesh.of(given_.sizes, rank.index), timeout_s=20)
    *qkv, seed = (given_.own(rank.index, x).clone() for x in given_.tensors())
    train = given_.at.phase == "train"
    for x in qkv:
        x.requires_grad_(train)
    scale = given_.d**-0.5
    carry = Pairs(*qkv, Mask() if given_.at.phase == "decode" else given_.mask, scale, given_.at.kernel)
    out = given_.strategy.apply(ops, ops.transport.mesh.axes, carry)
    if train:
        out.backward(seed)
    return [out.detach(), *([x.grad for x in qkv] if train else [])], ops.useful


def useful_flops(given_: Problem) -> int:
    """Of all ranks together, from the mask over the whole sequence: no pair is done twice, and none is left out."""
    n_q = 1 if given_.at.phase == "decode" else given_.at.length
    pairs = int(kept(given_.mask, n_q, given_.at.length).sum()) * given_.at.batch * given_.at.heads
    forward = 2 * (given_.d + given_.e)
    if given_.at.phase != "train":
        return pairs * forward
    # The fused kernel computes q k^T again on its way back; the vanilla one has kept its softmax.
    again = 2 * given_.d if given_.at.kernel == "fused" else 0
    return pairs * (3 * forward + again)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients(pool: RankPool, name: str) -> None:
    @settings(max_examples=12)
    @given(problems(strategies.get(name)))
    def check(given_: Problem) -> None:
        *qkv, seed = given_.tensors()
        for x in qkv:
            x.requires_grad_()
        expected = mix(*qkv, given_.mask, given_.d**-0.5)
        expected.backward(seed)
        wanted = [expected.detach(), *(x.grad for x in qkv)]
        done = pool.run(run_strategy, given_, ranks=math.prod(given_.sizes.values()))
        assert sum(useful for _, useful in done) == useful_flops(given_)
        for rank, (found, _) in enumerate(done):
            for actual, whole in zip(found, wanted, strict=False):
                torch.testing.assert_close(actual, given_.own(rank, whole), rtol=1e-10, atol=1e-10)

    check()
