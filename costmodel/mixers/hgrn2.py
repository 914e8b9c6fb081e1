"""HGRN2: linear attention whose keys are what the forget gates leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carry import Carry
from costmodel.composite import rms_norm
from costmodel.dims import Shape
from costmodel.mixer import Hyperparameter, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.gated import Gated
from costmodel.recurrences.gated_mixer import GatedMixer
from costmodel.recurrences.pieces import gated_step
from costmodel.written import decayed, gated_normed

T = TypeVar("T")


class Hgrn2(GatedMixer):
    """The key is 1 - f, f the forget gate and decay of each channel, with a lower bound of 0 (as in the first layer).

    The output's norm is of each head, so that tensor parallelism needs no sum for it.
    """

    name: ClassVar[str] = "hgrn2"
    title: ClassVar[str] = "HGRN2 (gated linear recurrence with state expansion)"
    template: ClassVar[str] = "P_ij = q_i^T diag(prod of f_t, j < t <= i) (1 - f_j),  f = sigmoid(X W_f),  V = X W_v"
    source: ClassVar[str] = "Qin et al. 2024, arXiv 2404.07904; flash-linear-attention layers/hgrn2.py"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 16, "heads", cut=True),
        "head_dim": Hyperparameter("d", 128, "expansion: head dimension of queries and forget gates"),
        "value_dim": Hyperparameter("e", 128, "head dimension of values"),
        "chunk": Hyperparameter("C", 64, "tokens of a chunk"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d, e = m["D"], m["H"], m["d"], m["e"]
        return {"w_q": (D, H, d), "w_f": (D, H, d), "w_v": (D, H, e), "norm": (e,), "w_o": (H, e, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_q", "w_f", "w_v"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v, decay = self._gated(ops, read)
        return Gated(q, k, v, decay, at.sizes["C"], at.kernel), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        q, k, v, decay = self._gated(ops, read)
        return gated_step(ops, (q, k, v), decay, at.cache[0])

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bhle,hed->bld", rms_norm(ops, mixed, w["norm"]), w["w_o"])

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, f, v = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_f", "w_v"))
        forget = 1 / (1 + xp.exp(-f))
        matrix = decayed(xp, q / (1 + xp.exp(-q)), 1 - forget, xp.log(forget))
        return Written(matrix, v, xp.einsum("bhle,hed->bld", gated_normed(matrix @ v, 1, w["norm"]), w["w_o"]))

    def _gated(self, ops: Vocabulary[T], read: tuple[T, ...]) -> tuple[T, T, T, T]:
        """Queries, keys, values, and the logarithm of decay."""
        q, f, v = read

        def body(ops: Vocabulary[Any], f: Any) -> Any:
            return ops.map("complement", ops.map("sigmoid", f)), ops.map("log_sigmoid", ops.cast(f, "accumulate"))

        k, decay = ops.fused("forget gate", body, f)
        return ops.map("silu", q), k, v, decay


hgrn2 = Hgrn2()
