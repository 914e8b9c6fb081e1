"""RetNet: linear attention with a fixed decay for each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carry import Carry
from costmodel.composite import rope
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.gated import Gated
from costmodel.recurrences.gated_mixer import GatedMixer
from costmodel.recurrences.pieces import gated_norm, gated_step
from costmodel.written import decayed, gated_normed, turned

T = TypeVar("T")


class RetNet(GatedMixer):
    """Multi-scale retention.

    The decay of a head is a weight, exp(-softplus(decay)), so that it is below 1; the paper fixes it to 1 - 2^(-5 - h).
    Rows of P are not divided by their sums: the norm of each head that follows takes any such factor out.
    """

    name: ClassVar[str] = "retnet"
    title: ClassVar[str] = "RetNet (retention with a fixed decay per head)"
    template: ClassVar[str] = "P_ij = gamma^(i - j) q_i^T k_j / sqrt(d) for j <= i,  V = X W_v"
    source: ClassVar[str] = "Sun et al. 2023, arXiv 2307.08621; torchscale multiscale_retention.py"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 8, "heads", cut=True),
        "head_dim": Hyperparameter("d", 256, "head dimension of queries and keys"),
        "value_dim": Hyperparameter("e", 512, "head dimension of values"),
        "chunk": Hyperparameter("C", 64, "tokens of a chunk"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d, e = m["D"], m["H"], m["d"], m["e"]
        read = {"w_q": (D, H, d), "w_k": (D, H, d), "w_v": (D, H, e), "w_g": (D, H, e)}
        return {**read, "decay": (H,), "w_o": (H, e, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_q", "w_k", "w_v", "w_g"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v, gate = self._turned(ops, read, at)
        decay = self._log_decay(ops, w)
        carry = Gated(q, k, v, None, at.sizes["C"], at.kernel, head_log_decay=decay, aside=(gate,))
        return carry, ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        q, k, v, gate = self._turned(ops, read, at)
        decay = ops.reshape(self._log_decay(ops, w), (1, at.sizes["H"], 1, 1))
        return gated_step(ops, (q, k, v), decay, at.cache[0], (gate,))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bhle,hed->bld", gated_norm(ops, mixed, at.aside[0]), w["w_o"])

    def rotary(self, m: Sizes) -> Dim:
        return m["d"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v, gate = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k", "w_v", "w_g"))
        q, k = (turned(xp, y, *at.tables) for y in (q, k))
        log_decay = -xp.log(1 + xp.exp(w["decay"])).view(1, -1, 1, 1).expand(*v.shape[:3], 1)
        matrix = decayed(xp, q * q.shape[-1] ** -0.5, k, log_decay)
        normed = gated_normed(matrix @ v, gate / (1 + xp.exp(-gate)))
        return Written(matrix, v, xp.einsum("bhle,hed->bld", normed, w["w_o"]))

    def _turned(self, ops: Vocabulary[T], read: tuple[T, ...], at: Site[T]) -> tuple[T, ...]:
        q, k, v, gate = read
        return ops.scale(rope(ops, q, *at.tables), at.sizes["d"] ** -0.5), rope(ops, k, *at.tables), v, gate

    def _log_decay(self, ops: Vocabulary[T], w: Weights) -> T:
        return ops.cast(ops.map("neg", ops.map("softplus", w["decay"])), "accumulate")


retnet = RetNet()
