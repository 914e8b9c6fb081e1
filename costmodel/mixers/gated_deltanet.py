"""Gated DeltaNet: linear attention with decay that replaces what its state holds for a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.dims import Shape
from costmodel.mixer import Hyperparameter, Site, Sizes, Weights
from costmodel.mixers.delta_rule import DeltaRule, delta_sizes, exponential_decay
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import gated_norm
from costmodel.written import gated_normed

T = TypeVar("T")


class GatedDeltaNet(DeltaRule):
    """Short convolutions, keys and queries of unit length, decay exp(-exp(A) softplus(.)) a head, gated norm.

    In Qwen3-Next each head of queries and keys serves two of values (transformers modeling_qwen3_next.py).
    """

    name: ClassVar[str] = "gated-deltanet"
    title: ClassVar[str] = "gated DeltaNet (delta rule with scalar decay)"
    template: ClassVar[str] = (
        "P_ij = b_j q_i^T (prod of a_t (I - b_t k_t k_t^T), j < t <= i) k_j / sqrt(d),  V = silu(conv(X W_v))"
    )
    source: ClassVar[str] = "Yang et al. 2024, arXiv 2412.06464; flash-linear-attention layers/gated_deltanet.py"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        **delta_sizes(heads=6, head_dim=256, value_dim=512),
        "kv_heads": Hyperparameter("H_kv", 6, "heads of queries and keys: as many as heads, or fewer", cut=True),
    }

    def gate_weights(self, m: Sizes) -> dict[str, Shape]:
        D, H = m["D"], m["H"]
        return {"w_g": (D, H, m["e"]), "w_b": (D, H, 1), "w_a": (D, H, 1), "A": (H,), "b_a": (H,)}

    def gate_inputs(self) -> tuple[str, ...]:
        return "w_g", "w_b", "w_a"

    def gates(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[T, T | None, tuple[T, ...]]:
        gate, beta, raw = read
        bias, rate = (ops.reshape(w[name], (at.sizes["H"], 1, 1)) for name in ("b_a", "A"))
        return ops.map("sigmoid", beta), exponential_decay(ops, raw, bias, rate), (gate,)

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bhle,hed->bld", gated_norm(ops, mixed, at.aside[0], w["norm"]), w["w_o"])

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        """Queries and keys have 3/4 of the width (flash-linear-attention layers/gated_deltanet.py)."""
        return sizes["heads"] * sizes["head_dim"] * 4 // 3

    def written_gates(self, xp: Any, x: Any, w: Weights) -> tuple[Any, Any]:
        b, a = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_b", "w_a"))
        rate = xp.exp(w["A"]).view(-1, 1, 1)
        return 1 / (1 + xp.exp(-b)), -rate * xp.log(1 + xp.exp(a + w["b_a"].view(-1, 1, 1)))

    def written_norm(self, xp: Any, mixed: Any, x: Any, w: Weights) -> Any:
        gate = xp.einsum("bld,dhe->bhle", x, w["w_g"])
        return gated_normed(mixed, gate / (1 + xp.exp(-gate)), w["norm"])


gated_deltanet = GatedDeltaNet()
