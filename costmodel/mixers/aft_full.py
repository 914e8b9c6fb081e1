"""AFT-full: every channel weighs tokens by its keys and by a bias for each pair of positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.product import Product
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Site, Sizes, Unmasked, Weights, Written
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class AftFull(Unmasked):
    """exp(w) [exp(K) V, exp(K)]: one product with a matrix that depends on positions only; then a division.

    w = U_p V_p^T is of low rank, its exponential is not. Without a mask, as for images.
    """

    name: ClassVar[str] = "aft-full"
    title: ClassVar[str] = "AFT-full (attention-free, biases of all pairs of positions)"
    template: ClassVar[str] = "P_ij = exp(w_ij + k_j) / rowsum of each channel,  V = X W_v,  Y = (sigmoid(Q) * P V) W_o"
    source: ClassVar[str] = "Zhai et al. 2021, arXiv 2105.14103, equation 2"
    structure: ClassVar[Structure] = Structure.DENSE
    carry: ClassVar[type[Carry[Any]]] = Product
    kernels: ClassVar[tuple[str, ...]] = ("direct",)
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "channels": Hyperparameter("D_i", 512, "inner channels", cut=True),
        "bias_rank": Hyperparameter("r_p", 128, "rank of the position biases"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        inward = (m["D"], m["D_i"])
        factors = {"left": (m["rows"], m["r_p"]), "right": (m["L"], m["r_p"])}
        return {"w_q": inward, "w_k": inward, "w_v": inward, **factors, "w_o": (m["D_i"], m["D"])}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_q", "w_k", "w_v"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = read
        matrix = ops.map("exp", ops.contract("ir,jr->ij", w["left"], w["right"]))
        matrix = ops.reshape(matrix, (1, *ops.shape(matrix)))
        return Product(matrix, _weighted(ops, k, v), aside=(q,)), ()

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        def body(ops: Vocabulary[Any], q: Any, mixed: Any) -> Any:
            b, n, d = ops.shape(q)
            above, below = (ops.reshape(ops.slice(mixed, 3, part, 1), (b, d, n)) for part in (0, 1))
            return ops.mul(ops.map("sigmoid", q), ops.permute(ops.map("div", above, below), (0, 2, 1)))

        return ops.contract("blf,fd->bld", ops.fused("gated quotient", body, at.aside[0], mixed), w["w_o"])

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["D_i"], m["D_i"]

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return sizes["channels"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v = (x @ w[name] for name in ("w_q", "w_k", "w_v"))
        bias = w["left"] @ w["right"].transpose(0, 1)
        matrix = xp.exp(bias + k.transpose(1, 2)[:, :, None])  # [B, channels, i, j]
        values = xp.stack((v, xp.ones_like(v)), -1).transpose(1, 2)
        above, below = (matrix @ values).transpose(1, 2).unbind(-1)
        return Written(matrix, values, (above / below / (1 + xp.exp(-q))) @ w["w_o"])


def _weighted(ops: Vocabulary[T], k: T, v: T) -> T:
    """exp(k) v and exp(k) [B, D, n, 2] of k and v [B, n, D], as one kernel."""

    def body(ops: Vocabulary[Any], k: Any, v: Any) -> Any:
        b, n, d = ops.shape(k)
        weight = ops.map("exp", k)
        both = (ops.reshape(x, (b, n, d, 1)) for x in (ops.mul(weight, v), weight))
        return ops.permute(ops.concat(list(both), 3), (0, 2, 1, 3))

    result: T = ops.fused("weighted values", body, k, v)
    return result


aft_full = AftFull()
