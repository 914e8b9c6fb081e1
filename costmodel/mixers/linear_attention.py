"""Linear attention: features are positive, entry by entry."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from costmodel.dims import Dim
from costmodel.mixer import Site, Sizes, Weights
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.feature_maps import FeatureAttention

T = TypeVar("T")


def positive(ops: Vocabulary[T], x: T) -> T:
    """The feature map elu(x) + 1 = max(x, 0) + exp(min(x, 0)), as one kernel."""

    def body(ops: Vocabulary[Any], x: Any) -> Any:
        up = ops.map("relu", x)
        return ops.add(up, ops.map("exp", ops.map("sub", x, up)))

    result: T = ops.fused("elu + 1", body, x)
    return result


class LinearAttention(FeatureAttention):
    """phi(x) = elu(x) + 1."""

    name: ClassVar[str] = "linear-attention"
    title: ClassVar[str] = "linear attention (elu + 1 features, normalised)"
    source: ClassVar[str] = "Katharopoulos et al. 2020, arXiv 2006.16236"

    def features(self, ops: Vocabulary[T], q: T, k: T, w: Weights, at: Site[T]) -> tuple[T, T]:
        return positive(ops, q), positive(ops, k)

    def written_features(self, xp: Any, q: Any, k: Any, w: Weights, at: Site[Any]) -> tuple[Any, Any]:
        return xp.where(q > 0, q + 1, xp.exp(q)), xp.where(k > 0, k + 1, xp.exp(k))

    def rank(self, m: Sizes) -> Dim:
        return m["d"]


linear_attention = LinearAttention()
