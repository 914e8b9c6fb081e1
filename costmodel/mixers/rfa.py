"""Random feature attention: sines and cosines of random projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Site, Sizes, Weights
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.feature_maps import FeatureAttention
from costmodel.recurrences.pieces import unit

T = TypeVar("T")


class RandomFeatureAttention(FeatureAttention):
    """phi(x) = [sin(W x), cos(W x)] of x of length 1, W random and different for each head.

    The paper's gate on the state, which makes it a RetNet with data-dependent decay, is left out.
    """

    name: ClassVar[str] = "rfa"
    title: ClassVar[str] = "random feature attention (sines and cosines)"
    source: ClassVar[str] = "Peng et al. 2021, arXiv 2103.02143, section 3.1"
    fixed: ClassVar[tuple[str, ...]] = ("w_phi",)
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        **FeatureAttention.sizes,
        "features": Hyperparameter("m", 64, "random projections, of each of which sine and cosine are a feature"),
    }

    def extra(self, m: Sizes) -> dict[str, Shape]:
        return {"w_phi": (m["H"], m["d"], m["m"])}

    def features(self, ops: Vocabulary[T], q: T, k: T, w: Weights, at: Site[T]) -> tuple[T, T]:
        def of(x: T) -> T:
            angle = ops.contract("bhnd,hdm->bhnm", unit(ops, x), w["w_phi"])
            return ops.concat([ops.map("sin", angle), ops.map("cos", angle)], 3)

        return of(q), of(k)

    def written_features(self, xp: Any, q: Any, k: Any, w: Weights, at: Site[Any]) -> tuple[Any, Any]:
        def of(x: Any) -> Any:
            angle = x / (x.square().sum(-1, True) + 1e-5).sqrt() @ w["w_phi"]
            return xp.cat((xp.sin(angle), xp.cos(angle)), -1)

        return of(q), of(k)

    def rank(self, m: Sizes) -> Dim:
        return 2 * m["m"]


rfa = RandomFeatureAttention()
