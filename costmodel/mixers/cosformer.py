"""cosFormer: rectified features, reweighted by the cosine of the distance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.dims import Dim
from costmodel.mixer import Hyperparameter, Site, Sizes, Weights
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.feature_maps import FeatureAttention

T = TypeVar("T")


class CosFormer(FeatureAttention):
    """phi(x_i) = [relu(x) cos(pi i / 2 M), relu(x) sin(pi i / 2 M)], so that P_ij falls with cos(pi (i - j) / 2 M).

    To rows of P that relu leaves empty the code adds nothing, and clamps their sums; here features are
    relu(x) + 1e-3, so that no row is empty.
    """

    name: ClassVar[str] = "cosformer"
    title: ClassVar[str] = "cosFormer (rectified features, cosine of the distance)"
    source: ClassVar[str] = "Qin et al. 2022, arXiv 2202.08791; OpenNLPLab/cosFormer"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        **FeatureAttention.sizes,
        "longest": Hyperparameter("L_max", 2**20, "the longest sequence, over which the cosine falls to 0"),
    }

    def features(self, ops: Vocabulary[T], q: T, k: T, w: Weights, at: Site[T]) -> tuple[T, T]:
        return _reweighted(ops, q, *at.tables), _reweighted(ops, k, *at.tables)

    def written_features(self, xp: Any, q: Any, k: Any, w: Weights, at: Site[Any]) -> tuple[Any, Any]:
        def of(x: Any) -> Any:
            angle = math.pi / 2 / at.sizes["L_max"] * xp.arange(x.shape[2], dtype=x.dtype)[:, None]
            up = x.clamp(min=0) + FLOOR
            return xp.cat((up * xp.cos(angle), up * xp.sin(angle)), -1)

        return of(q), of(k)

    def rank(self, m: Sizes) -> Dim:
        return 2 * m["d"]

    def rotary(self, m: Sizes) -> Dim:
        return 2

    def turns(self, m: Sizes) -> list[float]:
        return [math.pi / 2 / m["L_max"]]


#: Least feature.
FLOOR = 1e-3


def _reweighted(ops: Vocabulary[T], x: T, cos: T, sin: T) -> T:
    """[relu(x) cos, relu(x) sin] [B, H, n, 2 d], of tables [n, 1], as one kernel."""

    def body(ops: Vocabulary[Any], x: Any, cos: Any, sin: Any) -> Any:
        up = ops.shift(ops.map("relu", x), FLOOR)
        return ops.concat([ops.mul(up, cos), ops.mul(up, sin)], 3)

    result: T = ops.fused("cosine reweighting", body, x, cos, sin)
    return result


cosformer = CosFormer()
