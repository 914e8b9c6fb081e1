"""DeltaNet: linear attention that replaces what its state holds for a key, without decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.composite import rms_norm
from costmodel.dims import Shape
from costmodel.mixer import Hyperparameter, Site, Sizes, Weights
from costmodel.mixers.delta_rule import DeltaRule, delta_sizes
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import gated_normed

T = TypeVar("T")


class DeltaNet(DeltaRule):
    """Short convolutions, keys and queries of unit length, and a norm for each head; no output gate."""

    name: ClassVar[str] = "deltanet"
    title: ClassVar[str] = "DeltaNet (delta rule)"
    template: ClassVar[str] = (
        "P_ij = b_j q_i^T (prod of (I - b_t k_t k_t^T), j < t <= i) k_j / sqrt(d),  V = silu(conv(X W_v))"
    )
    source: ClassVar[str] = "Yang et al. 2024, arXiv 2406.06484; flash-linear-attention layers/delta_net.py"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = delta_sizes(heads=16, head_dim=128, value_dim=128)

    def gate_weights(self, m: Sizes) -> dict[str, Shape]:
        return {"w_b": (m["D"], m["H"], 1)}

    def gate_inputs(self) -> tuple[str, ...]:
        return ("w_b",)

    def gates(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[T, T | None, tuple[T, ...]]:
        return ops.map("sigmoid", read[0]), None, ()

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bhle,hed->bld", rms_norm(ops, mixed, w["norm"]), w["w_o"])

    def written_gates(self, xp: Any, x: Any, w: Weights) -> tuple[Any, Any]:
        beta = 1 / (1 + xp.exp(-xp.einsum("bld,dhe->bhle", x, w["w_b"])))
        return beta, xp.zeros_like(beta)

    def written_norm(self, xp: Any, mixed: Any, x: Any, w: Weights) -> Any:
        return gated_normed(mixed, 1, w["norm"])


deltanet = DeltaNet()
