"""MultiresConv: a tree of dilated convolutions, a wavelet transform with filters that are learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.neighbours import Near
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import INPUT, Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import by_channel, gated_unit, seen_rows
from costmodel.written import banded, gelu, glu

T = TypeVar("T")

PARAMETERS = ("low", "high", "read")


@dataclass(frozen=True)
class Tree(Near[T]):
    """y = read_0 lo_J + sum over levels of read_(i + 1) hi_i + read_(J + 1) x, with lo_0 = x [B, channels, n, 1].

    hi_i and lo_(i + 1) are the convolutions of lo_i with ``high`` and ``low``, whose taps are 2^i tokens apart. Levels
    are exchanged one by one, so that no rank repeats its neighbour's work.

    Attributes:
        weights: ``PARAMETERS``: low and high [channels, K], read [channels, J + 2].
    """

    along: ClassVar[tuple[str, ...]] = ("x",)
    of_heads: ClassVar[tuple[str, ...]] = ("weights",)

    x: T
    weights: tuple[T, ...]

    def beside(self, ops: Vocabulary[T], line: Axis | None) -> T:
        shape = ops.shape(self.x)
        taps = ops.shape(self.weights[0])[1]

        def seen(level: int, low: T) -> T:
            return ops.halo(low, 2, (taps - 1) * 2**level, 0, line)

        return ops.reshape(climbed(ops, ops.reshape(self.x, shape[:3]), self.weights, seen), shape)


def climbed(ops: Vocabulary[T], x: T, weights: Sequence[T], seen: Any) -> T:
    """The sums of ``Tree`` for x [B, channels, n].

    Args:
        seen: ``seen(level, lo)`` puts the tokens before, as many as the level's taps see, in front of lo [B, c, n].
    """
    low, high, read = weights
    channels, places = ops.shape(read)

    def weighted(ops: Vocabulary[Any], y: Any, part: Any, read: Any) -> Any:
        return ops.add(y, ops.mul(part, read))

    def of(place: int) -> T:
        return ops.reshape(ops.slice(read, 1, place, 1), (channels, 1))

    levels = int(places) - 2
    y, lo = ops.mul(x, of(levels + 1)), x
    for level in range(levels):
        under = seen(level, lo)
        y = ops.fused("weighted sum", weighted, y, ops.depthwise(under, high, 2**level), of(level + 1))
        lo = ops.depthwise(under, low, 2**level)
    result: T = ops.fused("weighted sum", weighted, y, lo, of(0))
    return result


class MultiresConv(Mixer):
    """The tree whose resolution fades with distance ("fading"), and the GELU and gated linear unit after it.

    A token sees (K - 1) (2^J - 1) others before it. When decoding, that many are kept, and moved up by one place at
    each token; a ring buffer would leave them where they are.
    """

    name: ClassVar[str] = "multiresconv"
    title: ClassVar[str] = "MultiresConv (tree of dilated convolutions)"
    template: ClassVar[str] = (
        "P = r_0 H_(J - 1) ... H_0 + sum over i < J of r_(i + 1) G_i H_(i - 1) ... H_0 + r_(J + 1) I, "
        "H_i and G_i convolutions of each channel with K taps 2^i apart,  V = X,  Y = glu(gelu(P V) W_o)"
    )
    source: ClassVar[str] = "Shi et al. 2023, arXiv 2305.01638; thjashin/multires-conv layers/multireslayer.py"
    structure: ClassVar[Structure] = Structure.BANDED
    carry: ClassVar[type[Carry[Any]]] = Near
    kernels: ClassVar[tuple[str, ...]] = ("direct",)
    causality: ClassVar[str] = "causal"
    indivisible: ClassVar[str] = "the gate after the output projection needs the sum over all channels"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "taps": Hyperparameter("K", 2, "taps of a convolution"),
        "levels": Hyperparameter("J", 10, "levels of the tree"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D = m["D"]
        tree = {"low": (D, m["K"]), "high": (D, m["K"]), "read": (D, m["J"] + 2)}
        return {**tree, "w_o": (D, 1, D), "w_g": (D, 1, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (INPUT,)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        return Tree(by_channel(ops, read[0]), tuple(w[name] for name in PARAMETERS)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        x = by_channel(ops, read[0])
        shape = ops.shape(x)

        def seen(level: int, low: T) -> T:
            rows = seen_rows(ops, ops.reshape(low, shape), at.cache[level])
            return ops.reshape(rows, ops.shape(rows)[:3])

        y = climbed(ops, ops.reshape(x, shape[:3]), [w[name] for name in PARAMETERS], seen)
        return Direct(ops.reshape(y, shape))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        result: T = gated_unit(ops, ops.map("gelu", mixed), w["w_o"], w["w_g"])
        return result

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return tuple(Kept((m["D"], (m["K"] - 1) * 2**level)) for level in range(int(m["J"])))

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["D"], m["D"]

    def reach(self, m: Sizes) -> Dim:
        return (m["K"] - 1) * 2 ** (int(m["J"]) - 1)

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return 256

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        n, taps = x.shape[1], at.sizes["K"]

        def convolution(filters: Any, apart: int) -> Any:
            between = [xp.zeros_like(filters[:, :1])] * (apart - 1)
            columns = [part for tap in range(taps) for part in (filters[:, tap : tap + 1], *between)]
            reach = (taps - 1) * apart
            return banded(xp, xp.cat(columns, 1)[:, : reach + 1], n, reach)

        below = xp.eye(n, dtype=x.dtype)
        matrix = w["read"][:, -1, None, None] * below
        for level in range(at.sizes["J"]):
            matrix = matrix + w["read"][:, level + 1, None, None] * (convolution(w["high"], 2**level) @ below)
            below = convolution(w["low"], 2**level) @ below
        matrix = (matrix + w["read"][:, 0, None, None] * below)[None]
        values = x.transpose(1, 2)[..., None]
        y = gelu(xp, (matrix @ values)[..., 0].transpose(1, 2))
        return Written(matrix, values, glu(xp, y @ w["w_o"][:, 0], y @ w["w_g"][:, 0]))


multiresconv = MultiresConv()
