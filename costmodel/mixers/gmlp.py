"""gMLP: a linear layer over tokens as a gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.product import Weighted
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Site, Sizes, Unmasked, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import by_channel, by_token, layer_normed, own_rows
from costmodel.written import gelu, standardised

T = TypeVar("T")


class GatedMlp(Unmasked):
    """The spatial gating unit, between the two projections of a perceptron whose hidden width is 2 Z.

    The norm before it is over all Z channels, so that these are not cut.
    """

    name: ClassVar[str] = "gmlp"
    title: ClassVar[str] = "gMLP (spatial gating unit)"
    template: ClassVar[str] = "P = W, a weight [L, L],  V = norm(gelu(X W_v)),  Y = (gelu(X W_u) * (P V + b)) W_o"
    source: ClassVar[str] = "Liu et al. 2021, arXiv 2105.08050; timm mlp_mixer.py SpatialGatingBlock"
    structure: ClassVar[Structure] = Structure.STATIC
    carry: ClassVar[type[Carry[Any]]] = Weighted
    kernels: ClassVar[tuple[str, ...]] = ("direct",)
    indivisible: ClassVar[str] = "the norm before the gate is over all channels"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {"gate_dim": Hyperparameter("Z", 1536, "channels that are gated")}

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, Z, rows = m["D"], m["Z"], m["rows"]
        inner = {"norm": (Z,), "shift": (Z,), "w": (m["grid_rows"], m["grid_columns"]), "b": (rows,)}
        return {"w_u": (D, Z), "w_v": (D, Z), **inner, "w_o": (Z, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_u", "w_v"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        u, v = (ops.map("gelu", x) for x in read)
        values = layer_normed(ops, v, w["norm"], w["shift"])
        return Weighted(w["w"], by_channel(ops, values), "ij", aside=(u,)), ()

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        def body(ops: Vocabulary[Any], u: Any, mixed: Any, b: Any) -> Any:
            return ops.mul(u, ops.add(mixed, b))

        tokens = by_token(ops, mixed)
        n = ops.shape(tokens)[1]
        b = ops.reshape(own_rows(ops, w["b"], n, at), (n, 1))
        return ops.contract("blz,zd->bld", ops.fused("gate", body, at.aside[0], tokens, b), w["w_o"])

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["Z"], m["Z"]

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return sizes["gate_dim"] // 3

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        u, v = gelu(xp, x @ w["w_u"]), gelu(xp, x @ w["w_v"])
        values = standardised(v, w["norm"], w["shift"])
        gate = w["w"] @ values + w["b"][:, None]
        return Written(w["w"][None, None], values.transpose(1, 2)[..., None], (u * gate) @ w["w_o"])


gmlp = GatedMlp()
