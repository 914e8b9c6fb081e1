"""Longformer: a window, and a few tokens that see all others and are seen by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.pattern import Pattern, Seen, ends, of_the_first, over_all, stretch, united
from costmodel.carry import Carry
from costmodel.dims import Dim, Shape
from costmodel.masks import Mask
from costmodel.mixer import INPUT, Hyperparameter, Site, Sizes, Unmasked, Weights, Written
from costmodel.mixers.heads import Patterned
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import softmax_where

T = TypeVar("T")


@dataclass(frozen=True)
class WindowAndGlobal(Pattern[T]):
    """A window, and global tokens at the beginning; streams are [B, H, n, d].

    Attributes:
        q, k, v: of the rows in the window; everybody sees the global tokens by these k and v.
        k_all, v_all: what the global tokens see.
        q_all: queries of the first tokens of each rank; those of the first rank are the global tokens'.
        side: tokens that a token sees to each side.
        count: global tokens.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v", "q_all", "k_all", "v_all")

    q: T
    k: T
    v: T
    q_all: T
    k_all: T
    v_all: T
    side: Dim
    count: Dim
    scale: Dim

    def beside(self, ops: Vocabulary[T], line: Axis | None) -> T:
        n, count, (first, last) = ops.shape(self.q)[2], self.count, ends(line)
        asked = [ops.slice(x, 2, 0, count) for x in (self.q_all, self.k, self.v)]
        known = of_the_first(ops, ops.concat(asked, 2), line)
        q_all, k_shared, v_shared = (ops.slice(known, 2, place * count, count) for place in range(3))
        k, v = (stretch(ops, x, count, self.side, self.side, line) for x in (self.k, self.v))
        window = Mask(window=self.side + 1, ahead=self.side * (1 - last))
        q = ops.slice(self.q, 2, count * first, n - count * first)
        others = united(ops, q, [Seen(k, v, window), Seen(k_shared, v_shared, Mask())], self.scale)
        rows = over_all(ops, q_all, Seen(self.k_all, self.v_all, Mask()), self.scale, line)
        return ops.concat([ops.slice(rows, 2, 0, count * first), others], 2)


class Longformer(Patterned, Unmasked):
    """P = softmax over a window of w_s tokens to each side and the G global tokens; rows of global tokens are full.

    The first G tokens are global, as [CLS] or a question at the beginning is. Their rows have projections of their own,
    for their queries and for everybody's keys and values. The other rows are computed without the global tokens in
    their window, and then merged with these.
    """

    name: ClassVar[str] = "longformer"
    title: ClassVar[str] = "Longformer: sliding window and global tokens"
    template: ClassVar[str] = (
        "P = softmax(M + Q K^T / sqrt(d)), M: |i - j| <= w_s or j < G;  rows i < G: all j, own W_q, W_k, W_v"
    )
    source: ClassVar[str] = "Beltagy et al. 2020, arXiv 2004.05150, section 3.1; allenai/longformer"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 12, "heads", cut=True),
        "head_dim": Hyperparameter("d", 64, "head dimension"),
        "side": Hyperparameter("w_s", 256, "tokens that a token sees to each side"),
        "globals": Hyperparameter("G", 64, "global tokens: 1 to classify, those of the question to answer one"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        shapes = super().weights(m)
        return shapes | {f"{name}_global": shapes[name] for name in ("w_q", "w_k", "w_v")}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return INPUT, "w_q", "w_k", "w_v", "w_k_global", "w_v_global"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        x, q, k, v, k_all, v_all = read
        side, count, scale = at.sizes["w_s"], at.sizes["G"], at.sizes["d"] ** -0.5
        q_all = ops.contract("bld,dhe->bhle", ops.slice(x, 1, 0, count), w["w_q_global"])
        return WindowAndGlobal(q, k, v, q_all, k_all, v_all, side, count, scale), ()

    def shortest(self, m: Sizes) -> int:
        return int(m["G"] + m["w_s"])

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        n, side, count = x.shape[1], at.sizes["w_s"], at.sizes["G"]
        q, k, v = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k", "w_v"))
        q_all, k_all, v_all = (xp.einsum("bld,dhe->bhle", x, w[f"w_{name}_global"]) for name in "qkv")
        i, j = xp.arange(n)[:, None], xp.arange(n)[None, :]
        # Beside each other: the keys that most rows see, and those that rows of global tokens see.
        scores = xp.cat([xp.einsum("bhid,bhjd->bhij", *both) for both in ((q, k), (q_all, k_all))], -1)
        keep = xp.cat([(i >= count) & (((i - j).abs() <= side) | (j < count)), (i < count).expand(n, n)], -1)
        matrix, values = softmax_where(xp, scores * q.shape[-1] ** -0.5, keep), xp.cat((v, v_all), 2)
        return Written(matrix, values, xp.einsum("bhij,bhje,hed->bid", matrix, values, w["w_o"]))


longformer = Longformer()
