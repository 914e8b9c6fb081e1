"""The strided pattern of the Sparse Transformer: heads that look around them, and heads that look at strided tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.pattern import Pattern, stretch
from costmodel.carry import Carry
from costmodel.dims import Dim, Shape, ceil_div, divide, floor_div, minimum
from costmodel.masks import Mask
from costmodel.mixer import Hyperparameter, Kept, Site, Sizes, Weights, Written
from costmodel.mixers.heads import Patterned
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import softmax_where

T = TypeVar("T")


@dataclass(frozen=True)
class Strided(Pattern[T]):
    """q, k, v [B, H, n, 2 d] of pairs of heads: the first half of each looks at a window, the second at strided tokens.

    Attributes:
        stride: between the tokens of a lane, and tokens of the window.
        scale: of the scores.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    q: T
    k: T
    v: T
    stride: Dim
    scale: Dim

    def beside(self, ops: Vocabulary[T], line: Axis | None) -> T:
        near, far = zip(*(ops.halves(x, 3) for x in self.streams()), strict=True)
        b, h, n, d = ops.shape(near[2])
        k, v = (stretch(ops, x, 0, self.stride - 1, 0, line) for x in near[1:])
        local = ops.attention(near[0], k, v, Mask(causal=True, window=self.stride), self.scale)[0]
        rows = b, h, divide(n, self.stride), self.stride, d
        lanes = self._lanes(ops, [ops.permute(ops.reshape(x, rows), (0, 1, 3, 2, 4)) for x in far], line)
        joined = ops.concat([ops.reshape(local, rows), ops.permute(lanes, (0, 1, 3, 2, 4))], 4)
        return ops.reshape(joined, (b, h, n, 2 * d))

    def _lanes(self, ops: Vocabulary[T], qkv: Sequence[T], line: Axis | None) -> T:
        """Causal attention within each lane of q, k, v [B, H, l, n / l, d]: as many independent sequences."""
        # Without ranks to exchange lanes with, the transposition still is a copy.
        whole = [ops.concat([x], 2) if line is None else ops.all_to_all(x, line, split=2, concat=3) for x in qkv]
        b, h, lanes, n, d = ops.shape(whole[0])
        q, k, v = (ops.reshape(x, (b, h * lanes, n, d)) for x in whole)
        out = ops.attention(q, k, v, Mask(causal=True), self.scale)[0]
        mixed = ops.reshape(out, (b, h, lanes, n, d))
        return mixed if line is None else ops.all_to_all(mixed, line, split=3, concat=2)


class SparseTransformer(Patterned):
    """P = softmax over a window of l tokens in one head of a pair, over every l-th token in the other.

    Two steps of both reach all earlier tokens if l is about the root of L. A lane of strided tokens is a sequence of
    its own, so ranks exchange lanes for tokens as they may heads.
    """

    name: ClassVar[str] = "sparse-strided"
    title: ClassVar[str] = "Sparse Transformer: local and strided heads"
    template: ClassVar[str] = "P = softmax(M + Q K^T / sqrt(d)), M: 0 <= i - j < l, or l divides i - j >= 0;  V = X W_v"
    source: ClassVar[str] = "Child et al. 2019, arXiv 1904.10509, section 4.2; openai/sparse_attention"
    causality: ClassVar[str] = "causal"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "pairs": Hyperparameter("H", 4, "pairs of a local and a strided head", cut=True),
        "head_dim": Hyperparameter("d", 64, "head dimension"),
        "stride": Hyperparameter("l", 128, "stride, and tokens of the window"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        return super().weights({**m, "d": 2 * m["d"]})

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = read
        return Strided(q, k, v, at.sizes["l"], at.sizes["d"] ** -0.5), (k, v)

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        q, *new = read
        kept = [ops.append(past, x, 2, at.cache_axis) for past, x in zip(at.cache, new, strict=True)]
        near, far = zip(*(ops.halves(x, 3) for x in (q, *kept)), strict=True)
        tokens, stride, scale = ops.shape(kept[0])[2], at.sizes["l"], at.sizes["d"] ** -0.5
        seen = minimum(tokens, stride)
        window = [ops.slice(x, 2, tokens - seen, seen) for x in near[1:]]
        first = tokens - 1 - stride * floor_div(tokens - 1, stride)
        lane = [ops.slice(x, 2, first, ceil_div(tokens, stride), stride) for x in far[1:]]
        parts = [ops.attention(query, k, v, Mask(), scale)[0] for query, (k, v) in ((near[0], window), (far[0], lane))]
        return Direct(ops.concat(parts, 3))

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((m["H"], tokens, 2 * m["d"]), tokens=True),) * 2

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return 2 * sizes["pairs"] * sizes["head_dim"]

    def grain(self, m: Sizes) -> int:
        return int(m["l"])

    def lanes(self, m: Sizes) -> Dim:
        return m["l"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        n, stride, d = x.shape[1], at.sizes["l"], at.sizes["d"]
        back = xp.arange(n)[:, None] - xp.arange(n)[None, :]
        keep = xp.stack([(back >= 0) & (back < stride), (back >= 0) & (back % stride == 0)])
        # Pairs of heads apart: [B, H, 2, n, d].
        q, k, v = (xp.einsum("bld,dhpe->bhple", x, w[name].unflatten(-1, (2, d))) for name in ("w_q", "w_k", "w_v"))
        matrix = softmax_where(xp, xp.einsum("bhpid,bhpjd->bhpij", q, k) * d**-0.5, keep)
        mixed = xp.einsum("bhpij,bhpje->bhpie", matrix, v)
        output = xp.einsum("bhple,hped->bld", mixed, w["w_o"].unflatten(1, (2, d)))
        return Written(matrix.flatten(1, 2), v.flatten(1, 2), output)


sparse_transformer = SparseTransformer()
