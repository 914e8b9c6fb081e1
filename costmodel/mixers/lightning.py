"""Lightning attention: the linear attention of MiniMax-01."""

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


class LightningAttention(GatedMixer):
    """RetNet's fixed decay of each head, without rotary positions; queries, keys and values go through silu.

    The decay is exp(-softplus(decay)), so that it is below 1; the source fixes it to exp(-2^(-8 h / H)), times a factor
    of the layer. The output's norm is of each head, so that tensor parallelism needs no sum for it; the source's is of
    all heads together.
    """

    name: ClassVar[str] = "lightning"
    title: ClassVar[str] = "Lightning attention (MiniMax-01)"
    template: ClassVar[str] = "P_ij = gamma^(i - j) q_i^T k_j for j <= i,  Q, K, V = silu(X W)"
    source: ClassVar[str] = "Qin et al. 2024, arXiv 2401.04658; MiniMax-01, arXiv 2501.08313; transformers minimax"
    fixed: ClassVar[tuple[str, ...]] = ("decay",)
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 64, "heads", cut=True),
        "head_dim": Hyperparameter("d", 128, "head dimension of queries and keys"),
        "value_dim": Hyperparameter("e", 128, "head dimension of values"),
        "chunk": Hyperparameter("C", 256, "tokens of a chunk"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d, e = m["D"], m["H"], m["d"], m["e"]
        read = {"w_q": (D, H, d), "w_k": (D, H, d), "w_v": (D, H, e), "w_g": (D, H, e)}
        return {**read, "decay": (H,), "norm": (e,), "w_o": (H, e, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_q", "w_k", "w_v", "w_g"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = (ops.map("silu", x) for x in read[:3])
        decay = self._log_decay(ops, w)
        return Gated(q, k, v, None, at.sizes["C"], at.kernel, head_log_decay=decay, aside=read[3:]), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        q, k, v = (ops.map("silu", x) for x in read[:3])
        decay = ops.reshape(self._log_decay(ops, w), (1, at.sizes["H"], 1, 1))
        return gated_step(ops, (q, k, v), decay, at.cache[0], read[3:])

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        normed = gated_norm(ops, mixed, at.aside[0], w["norm"], "sigmoid")
        return ops.contract("bhle,hed->bld", normed, w["w_o"])

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return 3 * sizes["heads"] * sizes["head_dim"] // 4

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v, gate = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k", "w_v", "w_g"))
        q, k, v = (y / (1 + xp.exp(-y)) for y in (q, k, v))
        log_decay = -xp.log(1 + xp.exp(w["decay"])).view(1, -1, 1, 1).expand(*v.shape[:3], 1)
        matrix = decayed(xp, q, k, log_decay)
        normed = gated_normed(matrix @ v, 1 / (1 + xp.exp(-gate)), w["norm"])
        return Written(matrix, v, xp.einsum("bhle,hed->bld", normed, w["w_o"]))

    def _log_decay(self, ops: Vocabulary[T], w: Weights) -> T:
        return ops.cast(ops.map("neg", ops.map("softplus", w["decay"])), "accumulate")


lightning = LightningAttention()
