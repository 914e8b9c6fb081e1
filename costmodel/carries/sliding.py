"""Depthwise convolution as a halo carry: each channel's neighbourhood, weighted by taps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from costmodel.carries.neighbours import Neighbours
from costmodel.dims import Dim, ceil_div
from costmodel.ops.convolution import under
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


def around(taps: Dim, causal: bool) -> tuple[Dim, Dim]:
    """How many tokens a window of so many taps reaches to the left and to the right; centred without a mask."""
    left = taps - 1 if causal else ceil_div(taps - 1, 2)
    return left, taps - 1 - left


@dataclass(frozen=True)
class Sliding(Neighbours[T]):
    """Sums of x [B, H, n, d] over a window, weighted by taps [H, d, K].

    Attributes:
        span: taps, and whether the window ends at the token.
    """

    along: ClassVar[tuple[str, ...]] = ("x",)
    of_heads: ClassVar[tuple[str, ...]] = ("taps",)

    x: T
    taps: T
    span: tuple[Dim, bool]

    @property
    def reach(self) -> tuple[Dim, Dim]:
        return around(*self.span)

    def local(self, ops: Vocabulary[T], padded: Sequence[T]) -> T:
        b, h, n, d = ops.shape(self.x)
        k = self.span[0]
        channels = ops.reshape(ops.permute(padded[0], (0, 1, 3, 2)), (b, h * d, n + k - 1))
        packed = under(self.packed, self.reach[0])
        mixed = ops.depthwise(channels, ops.reshape(self.taps, (h * d, k)), packed=packed)
        return ops.permute(ops.reshape(mixed, (b, h, d, n)), (0, 1, 3, 2))


@dataclass(frozen=True)
class SlidingDynamic(Neighbours[T]):
    """Sums of x [B, H, n, d] over a window, weighted by taps [B, H, n, K] of each token's own."""

    along: ClassVar[tuple[str, ...]] = ("x", "taps")

    x: T
    taps: T
    span: tuple[Dim, bool]

    @property
    def reach(self) -> tuple[Dim, Dim]:
        return around(*self.span)

    def seen(self) -> tuple[T, ...]:
        return (self.x,)

    def local(self, ops: Vocabulary[T], padded: Sequence[T]) -> T:
        return ops.dynamic_depthwise(padded[0], self.taps)
