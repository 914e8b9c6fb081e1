"""Attention-free transformers: in each channel, averages of values weighted by keys and by learned biases of places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.product import Weighted
from costmodel.carries.total import Sums, Total, total
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Site, Sizes, Unmasked, Weights, Written
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class _Free(Unmasked):
    """Y = sigmoid(Q) * (sum of w_ij exp(K_j) V_j) / (sum of w_ij exp(K_j)), then an output projection.

    Numerator and denominator are carried as values of twice the width. The largest key, which implementations subtract
    against overflow, cancels and is left out.
    """

    kernels: ClassVar[tuple[str, ...]] = ("direct",)
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 8, "groups of channels, which only say how ranks may cut them", cut=True),
        "value_dim": Hyperparameter("e", 64, "channels of a group"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, e = m["D"], m["H"], m["e"]
        return {**dict.fromkeys(("w_q", "w_k", "w_v"), (D, H, e)), "w_o": (H, e, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_q", "w_k", "w_v"

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        def body(ops: Vocabulary[Any], q: Any, top: Any, bottom: Any) -> Any:
            return ops.mul(ops.map("sigmoid", q), ops.map("div", top, bottom))

        gated = ops.fused("gated average", body, at.aside[0], *ops.halves(mixed, 3))
        return ops.contract("bhle,hed->bld", gated, w["w_o"])

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H"]

    def _weighed(self, ops: Vocabulary[T], k: T, v: T) -> T:
        """[exp(K) V, exp(K)] [B, H, n, 2 e], as one kernel."""

        def body(ops: Vocabulary[Any], k: Any, v: Any) -> Any:
            weight = ops.map("exp", k)
            return ops.concat([ops.mul(weight, v), weight], 3)

        result: T = ops.fused("weighed values", body, k, v)
        return result

    def _written(self, xp: Any, x: Any, w: Weights, places: Any) -> Written:
        q, k, v = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k", "w_v"))
        values = xp.cat((xp.exp(k) * v, xp.exp(k)), -1)
        top, bottom = (places @ values).chunk(2, -1)
        gated = top / bottom / (1 + xp.exp(-q))
        return Written(places[None, None], values, xp.einsum("bhle,hed->bld", gated, w["w_o"]))


class AftFull(_Free):
    """w = exp(U V^T), a bias for every pair of places; U V^T is of low rank, its exponential is not."""

    name: ClassVar[str] = "aft-full"
    title: ClassVar[str] = "AFT-full (attention-free transformer)"
    template: ClassVar[str] = "P_ij = exp(w_ij) exp(K_j) / rowsum, for each channel,  V = X W_v,  Y = sigmoid(Q) * P V"
    source: ClassVar[str] = "Zhai et al. 2021, arXiv 2105.14103, equation 2"
    structure: ClassVar[Structure] = Structure.DENSE
    carry: ClassVar[type[Carry[Any]]] = Weighted

    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        **_Free.sizes,
        "bias_rank": Hyperparameter("r_p", 128, "rank of the biases of places"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        return {**super().weights(m), "left": (m["grid_rows"], m["r_p"]), "right": (m["grid_columns"], m["r_p"])}

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = read
        places = ops.map("exp", ops.contract("ir,jr->ij", w["left"], w["right"]))
        return Weighted(places, self._weighed(ops, k, v), "ij", aside=(q,)), ()

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        return self._written(xp, x, w, xp.exp(w["left"] @ w["right"].mT))


@dataclass(frozen=True)
class Everywhere(Total[T]):
    """The sum of values [B, H, n, e] over all tokens, for each of them."""

    along: ClassVar[tuple[str, ...]] = ("values",)

    values: T

    def partial(self, ops: Vocabulary[T]) -> tuple[T, ...]:
        return (ops.cast(ops.sum(self.values, (2,)), "accumulate"),)

    def finish(self, ops: Vocabulary[T], totals: tuple[T, ...]) -> T:
        return ops.expand(ops.cast(totals[0], "model"), ops.shape(self.values))


class AftSimple(_Free):
    """w_ij = 1: the same average for every token."""

    name: ClassVar[str] = "aft-simple"
    title: ClassVar[str] = "AFT-simple (attention-free transformer)"
    template: ClassVar[str] = "P_ij = exp(K_j) / sum, for each channel,  V = X W_v,  Y = sigmoid(Q) * P V"
    source: ClassVar[str] = "Zhai et al. 2021, arXiv 2105.14103, equation 5"
    structure: ClassVar[Structure] = Structure.LOW_RANK
    carry: ClassVar[type[Carry[Any]]] = Total

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = read
        return Everywhere(self._weighed(ops, k, v), aside=(q,)), ()

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        n = x.shape[1]
        return self._written(xp, x, w, xp.ones((n, n), dtype=x.dtype))


@dataclass(frozen=True)
class NearAndFar(Sums[T]):
    """The sum of values [B, H, n, e] over all tokens, those near a token weighted by exp(bias) for it, others by 1.

    What is near is summed up a second time, weighted by exp(bias) - 1, so that a rank needs the sum of all values, and
    rows of its neighbours.

    Attributes:
        biases: [n, 2 reach + 1], of this rank's tokens for those around them.
    """

    along: ClassVar[tuple[str, ...]] = ("values",)

    values: T
    biases: T
    reach: Dim

    def over(self, ops: Vocabulary[T], line: Axis | None) -> T:
        everything = total(ops, ops.cast(ops.sum(self.values, (2,)), "accumulate"), line)
        rows = ops.halo(self.values, 2, self.reach, self.reach, line)
        result: T = ops.fused("near and far", self._both, rows, self.biases, everything)
        return result

    def _both(self, ops: Vocabulary[Any], rows: Any, biases: Any, everything: Any) -> Any:
        (n, taps), (b, h) = ops.shape(biases), ops.shape(rows)[:2]
        weights = ops.reshape(ops.shift(ops.map("exp", biases), -1), (1, 1, n, taps))
        near = ops.dynamic_depthwise(rows, ops.expand(weights, (b, h, n, taps)))
        return ops.add(near, everything)


class AftLocal(_Free):
    """w_ij = exp(bias_ij) for places nearer than w_b, 1 for all others, which so are still averaged over."""

    name: ClassVar[str] = "aft-local"
    title: ClassVar[str] = "AFT-local (attention-free transformer)"
    template: ClassVar[str] = (
        "P_ij = exp(w_ij) exp(K_j) / rowsum, for each channel, w_ij = 0 unless |i - j| < w_b,  V = X W_v,  "
        "Y = sigmoid(Q) * P V"
    )
    source: ClassVar[str] = "Zhai et al. 2021, arXiv 2105.14103, equation 4"
    structure: ClassVar[Structure] = Structure.LOW_RANK
    carry: ClassVar[type[Carry[Any]]] = Sums
    overlap_mixed: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        **_Free.sizes,
        "near": Hyperparameter("w_b", 32, "tokens at this distance or farther have no biases"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        return {**super().weights(m), "biases": (m["rows"], 2 * m["w_b"] - 1)}

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = read
        return NearAndFar(self._weighed(ops, k, v), w["biases"], at.sizes["w_b"] - 1, aside=(q,)), ()

    def overlap(self, m: Sizes) -> Dim:
        return m["w_b"] - 1

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        place, reach = xp.arange(x.shape[1]), at.sizes["w_b"] - 1
        ahead = place - place[:, None]
        biases = w["biases"].gather(1, ahead.clamp(-reach, reach) + reach)
        return self._written(xp, x, w, xp.exp(biases * (ahead.abs() <= reach)))


aft_full = AftFull()
aft_local = AftLocal()
aft_simple = AftSimple()
