"""Performer: the softmax's kernel estimated by positive random features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Site, Sizes, Weights
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.feature_maps import FeatureAttention

T = TypeVar("T")


class Performer(FeatureAttention):
    """phi(x) = exp(W x - |x|^2 / 2) of x scaled by d^(-1/4), W random and orthogonal, shared by the heads.

    The factor 1 / sqrt(m) cancels in the normalised rows. So does the largest exponent, which implementations subtract
    against overflow, of a token for queries and of all tokens for keys; it is left out.
    """

    name: ClassVar[str] = "performer"
    title: ClassVar[str] = "Performer (FAVOR+: positive random features)"
    source: ClassVar[str] = "Choromanski et al. 2020, arXiv 2009.14794, lemma 1; lucidrains/performer-pytorch"
    fixed: ClassVar[tuple[str, ...]] = ("w_phi",)
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        **FeatureAttention.sizes,
        "features": Hyperparameter("m", 256, "random features"),
    }

    def extra(self, m: Sizes) -> dict[str, Shape]:
        return {"w_phi": (m["d"], m["m"])}

    def features(self, ops: Vocabulary[T], q: T, k: T, w: Weights, at: Site[T]) -> tuple[T, T]:
        def of(x: T) -> T:
            x = ops.scale(x, at.sizes["d"] ** -0.25)
            return _exponential(ops, ops.contract("bhnd,dm->bhnm", x, w["w_phi"]), x)

        return of(q), of(k)

    def written_features(self, xp: Any, q: Any, k: Any, w: Weights, at: Site[Any]) -> tuple[Any, Any]:
        def of(x: Any) -> Any:
            x = x / x.shape[-1] ** 0.25
            return xp.exp(x @ w["w_phi"]) / xp.exp(x.square().sum(-1, True) / 2)

        return of(q), of(k)

    def rank(self, m: Sizes) -> Dim:
        return m["m"]


def _exponential(ops: Vocabulary[T], projected: T, x: T) -> T:
    """exp(projected - |x|^2 / 2), as one kernel."""

    def body(ops: Vocabulary[Any], projected: Any, x: Any) -> Any:
        half = ops.scale(ops.sum(ops.map("square", x), (3,)), 0.5)
        return ops.map("exp", ops.map("sub", projected, half))

    result: T = ops.fused("positive random features", body, projected, x)
    return result


performer = Performer()
