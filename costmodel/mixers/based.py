"""Based: features of the exponential's Taylor series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.dims import Dim
from costmodel.mixer import Hyperparameter, Site, Sizes, Weights
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.feature_maps import FeatureAttention

T = TypeVar("T")


class Based(FeatureAttention):
    """phi(x) = [1, x, x x^T / sqrt(2)] of x scaled by d^(-1/4), so that phi(q)^T phi(k) = 1 + s + s^2 / 2 > 0.

    Both of the equal products x_i x_j and x_j x_i are features, as in the paper; some kernels keep one of them. The
    paper's layers of windowed attention in between are layers of their own.
    """

    name: ClassVar[str] = "based"
    title: ClassVar[str] = "Based (second-order Taylor features)"
    source: ClassVar[str] = "Arora et al. 2024, arXiv 2402.18668; flash-linear-attention layers/based.py"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 12, "heads", cut=True),
        "head_dim": Hyperparameter("d", 16, "head dimension of queries and keys, before the features"),
        "value_dim": Hyperparameter("e", 64, "head dimension of values"),
        "chunk": FeatureAttention.sizes["chunk"],
    }

    def features(self, ops: Vocabulary[T], q: T, k: T, w: Weights, at: Site[T]) -> tuple[T, T]:
        return _taylor(ops, q), _taylor(ops, k)

    def written_features(self, xp: Any, q: Any, k: Any, w: Weights, at: Site[Any]) -> tuple[Any, Any]:
        def of(x: Any) -> Any:
            x = x / x.shape[-1] ** 0.25
            square = xp.einsum("bhni,bhnj->bhnij", x, x).flatten(3)
            return xp.cat((xp.ones_like(x[..., :1]), x, square / 2**0.5), -1)

        return of(q), of(k)

    def rank(self, m: Sizes) -> Dim:
        return 1 + m["d"] + m["d"] * m["d"]

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return sizes["heads"] * sizes["value_dim"]


def _taylor(ops: Vocabulary[T], x: T) -> T:
    """[1, x, x x^T / sqrt(2)] [B, H, n, 1 + d + d^2] of x [B, H, n, d] scaled by d^(-1/4), as one kernel."""

    def body(ops: Vocabulary[Any], x: Any) -> Any:
        b, h, n, d = ops.shape(x)
        x = ops.scale(x, d**-0.25)
        outer = ops.mul(ops.reshape(x, (b, h, n, d, 1)), ops.reshape(ops.scale(x, 2**-0.5), (b, h, n, 1, d)))
        return ops.concat([ops.ones((b, h, n, 1)), x, ops.reshape(outer, (b, h, n, d * d))], 3)

    result: T = ops.fused("Taylor features", body, x)
    return result


based = Based()
