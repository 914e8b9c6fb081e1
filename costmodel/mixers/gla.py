"""GLA: linear attention with a decay for each channel, computed from the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carry import Carry
from costmodel.dims import Shape
from costmodel.mixer import Hyperparameter, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.gated import Gated
from costmodel.recurrences.gated_mixer import GatedMixer
from costmodel.recurrences.pieces import gated_norm, gated_step
from costmodel.written import decayed, gated_normed

T = TypeVar("T")


#: Decay is sigmoid(x)^(1 / TEMPERATURE), near 1 (section 4.4).
TEMPERATURE = 16


class GatedLinearAttention(GatedMixer):
    """The gate is a low-rank projection of the input; the output has a norm for each head and a swish gate."""

    name: ClassVar[str] = "gla"
    title: ClassVar[str] = "gated linear attention (GLA)"
    template: ClassVar[str] = (
        "P_ij = q_i^T diag(prod of a_t, j < t <= i) k_j / sqrt(d),  a = sigmoid(X W_a1 W_a2 + b)^(1/16)"
    )
    source: ClassVar[str] = "Yang et al. 2023, arXiv 2312.06635; flash-linear-attention layers/gla.py"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 4, "heads", cut=True),
        "head_dim": Hyperparameter("d", 256, "head dimension of queries and keys"),
        "value_dim": Hyperparameter("e", 512, "head dimension of values"),
        "gate_rank": Hyperparameter("r_g", 16, "rank of the projection to the decay"),
        "chunk": Hyperparameter("C", 64, "tokens of a chunk"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d, e, r = m["D"], m["H"], m["d"], m["e"], m["r_g"]
        read = {"w_q": (D, H, d), "w_k": (D, H, d), "w_v": (D, H, e), "w_g": (D, H, e), "w_a1": (D, r)}
        return {**read, "w_a2": (r, H, d), "b_a": (H, d), "norm": (e,), "w_o": (H, e, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_q", "w_k", "w_v", "w_g", "w_a1"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v, gate, low = read
        decay = self._log_decay(ops, low, w, at)
        return Gated(self._scaled(ops, q, at), k, v, decay, at.sizes["C"], at.kernel, aside=(gate,)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        q, k, v, gate, low = read
        decay = self._log_decay(ops, low, w, at)
        return gated_step(ops, (self._scaled(ops, q, at), k, v), decay, at.cache[0], (gate,))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bhle,hed->bld", gated_norm(ops, mixed, at.aside[0], w["norm"]), w["w_o"])

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return sizes["heads"] * sizes["value_dim"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v, gate = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k", "w_v", "w_g"))
        raw = xp.einsum("bld,dr,rhe->bhle", x, w["w_a1"], w["w_a2"]) + w["b_a"][:, None]
        matrix = decayed(xp, q * q.shape[-1] ** -0.5, k, -xp.log(1 + xp.exp(-raw)) / TEMPERATURE)
        normed = gated_normed(matrix @ v, gate / (1 + xp.exp(-gate)), w["norm"])
        return Written(matrix, v, xp.einsum("bhle,hed->bld", normed, w["w_o"]))

    def _scaled(self, ops: Vocabulary[T], q: T, at: Site[T]) -> T:
        return ops.scale(q, at.sizes["d"] ** -0.5)

    def _log_decay(self, ops: Vocabulary[T], low: T, w: Weights, at: Site[T]) -> T:
        """[B, H, n, d], from the input's projection [B, n, r_g]."""
        raw = ops.contract("blr,rhe->bhle", low, w["w_a2"])
        bias = ops.reshape(w["b_a"], (at.sizes["H"], 1, at.sizes["d"]))

        def body(ops: Vocabulary[Any], raw: Any, bias: Any) -> Any:
            return ops.scale(ops.map("log_sigmoid", ops.add(ops.cast(raw, "accumulate"), bias)), 1 / TEMPERATURE)

        decay: T = ops.fused("gate", body, raw, bias)
        return decay


gla = GatedLinearAttention()
