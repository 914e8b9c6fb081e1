"""Lightweight and dynamic convolutions: few taps, normalised by a softmax, shared by the channels of a head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.neighbours import Neighbours
from costmodel.carries.sliding import Sliding, SlidingDynamic, around
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.masks import Mask
from costmodel.mixer import Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import remembered, seen_rows
from costmodel.written import banded, shifted_rows

T = TypeVar("T")


class _Convolution(Mixer):
    """Y = convolution(glu(X W_in)) W_o."""

    structure: ClassVar[Structure] = Structure.BANDED
    carry: ClassVar[type[Carry[Any]]] = Neighbours
    kernels: ClassVar[tuple[str, ...]] = ("direct",)
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 16, "heads: groups of channels with the same taps", cut=True),
        "value_dim": Hyperparameter("e", 64, "channels of a head"),
        "taps": Hyperparameter("K", 31, "taps of the convolution"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, e = m["D"], m["H"], m["e"]
        return {"w_v": (D, H, e), "w_g": (D, H, e), "taps": self.taps(m), "w_o": (H, e, D)}

    @abstractmethod
    def taps(self, m: Sizes) -> Shape:
        """The shape of the taps, or of what makes them."""

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_v", "w_g"

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bhle,hed->bld", mixed, w["w_o"])

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((m["H"] * m["e"], m["K"] - 1)),)

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H"]

    def reach(self, m: Sizes) -> Dim:
        return m["K"] - 1

    def _gated(self, ops: Vocabulary[T], read: tuple[T, ...]) -> T:
        """The gated linear unit: v sigmoid(g), as one kernel."""

        def body(ops: Vocabulary[Any], v: Any, g: Any) -> Any:
            return ops.mul(v, ops.map("sigmoid", g))

        result: T = ops.fused("gated linear unit", body, *read)
        return result

    def _written(self, xp: Any, x: Any, w: Weights) -> Any:
        v, g = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_v", "w_g"))
        return v / (1 + xp.exp(-g))


class LightConv(_Convolution):
    """Taps are weights."""

    name: ClassVar[str] = "lightconv"
    title: ClassVar[str] = "lightweight convolution"
    template: ClassVar[str] = "P_ij = softmax(taps)_(j - i) of each head,  V = glu(X W_in)"
    source: ClassVar[str] = "Wu et al. 2019, arXiv 1901.10430; fairseq lightweight_convolution.py"
    documents: ClassVar[bool] = True

    def taps(self, m: Sizes) -> Shape:
        return (m["H"], m["K"])

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        return Sliding(self._gated(ops, read), self._normed(ops, w, at), (at.sizes["K"], at.mask.causal)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        return remembered(ops, self._gated(ops, read), self._normed(ops, w, at), at.cache[0])

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        values = self._written(xp, x, w)
        left, _ = around(at.sizes["K"], at.mask.causal)
        matrix = banded(xp, xp.softmax(w["taps"], -1), x.shape[1], left)[None]
        return Written(matrix, values, xp.einsum("bhle,hed->bld", matrix @ values, w["w_o"]))

    def _normed(self, ops: Vocabulary[T], w: Weights, at: Site[T]) -> T:
        """Taps [H, e, K] that sum up to 1."""
        h, k = ops.shape(w["taps"])
        normed = ops.softmax(ops.reshape(w["taps"], (1, h, k)), 1, Mask())
        return ops.reshape(ops.repeat(ops.reshape(normed, (h, k)), 0, at.sizes["e"]), (h, at.sizes["e"], k))


class DynamicConv(_Convolution):
    """Taps of each token are a product of its gated values of all channels, so that heads are not independent of each
    other before the convolution: tensor parallelism would need a sum there.
    """

    name: ClassVar[str] = "dynamicconv"
    title: ClassVar[str] = "dynamic convolution"
    template: ClassVar[str] = "P_ij = softmax(V_i W_taps)_(j - i) of each head,  V = glu(X W_in)"
    source: ClassVar[str] = "Wu et al. 2019, arXiv 1901.10430; fairseq dynamic_convolution.py"
    indivisible: ClassVar[str] = "taps are made of the channels of all heads"

    def taps(self, m: Sizes) -> Shape:
        return (m["H"], m["e"], m["H"], m["K"])

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        values = self._gated(ops, read)
        return SlidingDynamic(values, self._normed(ops, values, w), (at.sizes["K"], at.mask.causal)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        values = self._gated(ops, read)
        rows = seen_rows(ops, values, at.cache[0])
        return Direct(ops.dynamic_depthwise(rows, self._normed(ops, values, w)))

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        values = self._written(xp, x, w)
        left, _ = around(at.sizes["K"], at.mask.causal)
        taps = xp.softmax(xp.einsum("bhie,hegk->bgik", values, w["taps"]), -1)
        matrix = shifted_rows(xp, taps, left)
        return Written(matrix, values, xp.einsum("bhle,hed->bld", matrix @ values, w["w_o"]))

    def _normed(self, ops: Vocabulary[T], values: T, w: Weights) -> T:
        """Taps [B, H, n, K] that sum up to 1."""
        b, h, n, e = ops.shape(values)
        k = ops.shape(w["taps"])[3]
        rows = ops.reshape(ops.permute(values, (0, 2, 1, 3)), (b, n, h * e))
        made = ops.contract("bnc,cgk->bgnk", rows, ops.reshape(w["taps"], (h * e, h, k)))
        return ops.softmax(made, 1, Mask())


lightconv = LightConv()
dynamicconv = DynamicConv()
