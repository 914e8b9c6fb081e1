"""Kimi delta attention (KDA): the delta rule with a decay for each channel."""

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


class KimiDeltaAttention(DeltaRule):
    """Decay exp(-exp(A) softplus(.)) a channel and the sigmoid output gate come from projections of low rank."""

    name: ClassVar[str] = "kda"
    title: ClassVar[str] = "Kimi delta attention (delta rule with decay per channel)"
    template: ClassVar[str] = (
        "P_ij = b_j q_i^T (prod of (I - b_t k_t k_t^T) diag(a_t), j < t <= i) k_j / sqrt(d),  V = silu(conv(X W_v))"
    )
    source: ClassVar[str] = "Kimi Team 2025, arXiv 2510.26692; flash-linear-attention layers/kda.py"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        **delta_sizes(heads=16, head_dim=128, value_dim=128),
        "gate_rank": Hyperparameter("r_g", 128, "rank of the projections to decay and output gate"),
    }

    def gate_weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d, e, r = (m[name] for name in ("D", "H", "d", "e", "r_g"))
        decay = {"w_a1": (D, r), "w_a2": (r, H, d), "b_a": (H, d), "A": (H,)}
        return {"w_b": (D, H, 1), **decay, "w_g1": (D, r), "w_g2": (r, H, e), "b_g": (H, e)}

    def gate_inputs(self) -> tuple[str, ...]:
        return "w_b", "w_a1", "w_g1"

    def gates(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[T, T | None, tuple[T, ...]]:
        beta, low_decay, low_gate = read
        H, d, e = (at.sizes[name] for name in ("H", "d", "e"))
        raw, gate = (
            ops.contract("blr,rhe->bhle", low, w[name]) for low, name in ((low_decay, "w_a2"), (low_gate, "w_g2"))
        )
        decay = exponential_decay(ops, raw, ops.reshape(w["b_a"], (H, 1, d)), ops.reshape(w["A"], (H, 1, 1)))
        return ops.map("sigmoid", beta), decay, (ops.add(gate, ops.reshape(w["b_g"], (H, 1, e))),)

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        normed = gated_norm(ops, mixed, at.aside[0], w["norm"], "sigmoid")
        return ops.contract("bhle,hed->bld", normed, w["w_o"])

    def written_gates(self, xp: Any, x: Any, w: Weights) -> tuple[Any, Any]:
        beta = 1 / (1 + xp.exp(-xp.einsum("bld,dhe->bhle", x, w["w_b"])))
        raw = xp.einsum("bld,dr,rhe->bhle", x, w["w_a1"], w["w_a2"]) + w["b_a"][:, None]
        return beta, -xp.exp(w["A"]).view(-1, 1, 1) * xp.log(1 + xp.exp(raw))

    def written_norm(self, xp: Any, mixed: Any, x: Any, w: Weights) -> Any:
        gate = xp.einsum("bld,dr,rhe->bhle", x, w["w_g1"], w["w_g2"]) + w["b_g"][:, None]
        return gated_normed(mixed, 1 / (1 + xp.exp(-gate)), w["norm"])


kda = KimiDeltaAttention()
