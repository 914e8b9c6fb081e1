"""PoolFormer: the average of the neighbourhood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.neighbours import Neighbours
from costmodel.carries.sliding import around
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import INPUT, Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import seen_rows

T = TypeVar("T")


@dataclass(frozen=True)
class Averaged(Neighbours[T]):
    """The mean of x [B, H, n, d] over a window, of the tokens that are there: fewer at the ends.

    Attributes:
        there: ones [1, H, n, 1], whose sums count the tokens of a window.
    """

    along: ClassVar[tuple[str, ...]] = ("x", "there")

    x: T
    there: T
    taps: int
    causal: bool

    @property
    def reach(self) -> tuple[Dim, Dim]:
        return around(self.taps, self.causal)

    def local(self, ops: Vocabulary[T], padded: Sequence[T]) -> T:
        return mean(ops, padded[0], padded[1], self.taps)


def mean(ops: Vocabulary[T], x: T, there: T, taps: int) -> T:
    """Sums of x [B, H, n + K - 1, d] over a window of K, over those of ``there``, as one kernel."""

    def summed(ops: Vocabulary[Any], x: Any) -> Any:
        n = ops.shape(x)[2] - (taps - 1)
        total = ops.slice(x, 2, 0, n)
        for place in range(1, taps):
            total = ops.add(total, ops.slice(x, 2, place, n))
        return total

    def body(ops: Vocabulary[Any], x: Any, there: Any) -> Any:
        return ops.map("div", summed(ops, x), summed(ops, there))

    result: T = ops.fused("average pooling", body, x, there)
    return result


class PoolFormer(Mixer):
    """No weights: the only thing that mixes tokens is the mean of three of them, less the token itself."""

    name: ClassVar[str] = "poolformer"
    title: ClassVar[str] = "PoolFormer (average pooling)"
    template: ClassVar[str] = "P_ij = 1 / (tokens in the window of i) for j in it,  V = X,  Y = P V - X"
    source: ClassVar[str] = "Yu et al. 2021, arXiv 2111.11418; github.com/sail-sg/poolformer"
    structure: ClassVar[Structure] = Structure.BANDED
    carry: ClassVar[type[Carry[Any]]] = Neighbours
    kernels: ClassVar[tuple[str, ...]] = ("direct",)
    indivisible: ClassVar[str] = "there is no projection that could be cut"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {"taps": Hyperparameter("K", 3, "tokens of the window")}

    def weights(self, m: Sizes) -> dict[str, Shape]:
        return {}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (INPUT,)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        (x,) = read
        b, n, d = ops.shape(x)
        there = ops.ones((1, 1, n, 1))
        return Averaged(ops.reshape(x, (b, 1, n, d)), there, at.sizes["K"], at.mask.causal, aside=(x,)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        (x,) = read
        b, n, d = ops.shape(x)
        k = at.sizes["K"]
        ones = ops.reshape(ops.ones((b, n)), (b, 1, n, 1))
        there = seen_rows(ops, ones, at.cache[1])
        return Direct(mean(ops, seen_rows(ops, ops.reshape(x, (b, 1, n, d)), at.cache[0]), there, k), aside=(x,))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        (x,) = at.aside
        return ops.map("sub", ops.reshape(mixed, ops.shape(x)), x)

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        before = m["K"] - 1
        return Kept((m["D"], before)), Kept((1, before))

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return 1, 1

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return 512

    def reach(self, m: Sizes) -> Dim:
        return m["K"] - 1

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        n, (left, right) = x.shape[1], around(at.sizes["K"], at.mask.causal)
        apart = xp.arange(n)[None, :] - xp.arange(n)[:, None]
        seen = ((apart >= -left) & (apart <= right)).to(x.dtype)
        matrix = (seen / seen.sum(-1, True))[None, None]
        return Written(matrix, x[:, None], (matrix @ x[:, None])[:, 0] - x)


poolformer = PoolFormer()
