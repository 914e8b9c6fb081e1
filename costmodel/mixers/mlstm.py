"""mLSTM: the matrix memory of xLSTM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carry import Carry
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.gated import Gated
from costmodel.recurrences.gated_mixer import GatedMixer
from costmodel.recurrences.pieces import gated_layer_norm, gated_step
from costmodel.written import decayed, gated_normed

T = TypeVar("T")


#: What gates are made of is capped smoothly: GATE_CAP tanh(x / GATE_CAP).
GATE_CAP = 15.0


class Mlstm(GatedMixer):
    """Exponential input gates, sigmoid forget gates, and a normaliser, carried as one more column of V, of ones.

    The paper's running maximum cancels out of its result max(|normaliser|, 1); it only keeps exp in range. Here, as in
    xLSTM 7B, gates are capped smoothly, and the maximum is left out: exp(15) is within the range of float32 and
    bfloat16. The output's norm is a layer norm of each head.
    """

    name: ClassVar[str] = "mlstm"
    title: ClassVar[str] = "mLSTM (xLSTM's matrix memory)"
    template: ClassVar[str] = "P_ij = (prod of f_t, j < t <= i) exp(i_j) q_i^T k_j / sqrt(d) / max(|rowsum|, 1)"
    source: ClassVar[str] = "Beck et al. 2024, arXiv 2405.04517, equations 19-27; xLSTM 7B, arXiv 2503.13427"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 8, "heads", cut=True),
        "head_dim": Hyperparameter("d", 256, "head dimension of queries and keys"),
        "value_dim": Hyperparameter("e", 512, "head dimension of values"),
        "chunk": Hyperparameter("C", 64, "tokens of a chunk"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d, e = m["D"], m["H"], m["d"], m["e"]
        read = {"w_q": (D, H, d), "w_k": (D, H, d), "w_v": (D, H, e), "w_g": (D, H, e)}
        gates = {"w_i": (D, H, 1), "w_f": (D, H, 1), "b_i": (H,), "b_f": (H,)}
        return {**read, **gates, "norm": (H, e), "w_o": (H, e, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_q", "w_k", "w_v", "w_g", "w_i", "w_f"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v, decay = self._gated(ops, read, w, at)
        return Gated(q, k, v, decay, at.sizes["C"], at.kernel, aside=(read[3],)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        q, k, v, decay = self._gated(ops, read, w, at)
        return gated_step(ops, (q, k, v), decay, at.cache[0], (read[3],))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        e = at.sizes["e"]

        def body(ops: Vocabulary[Any], values: Any, sums: Any) -> Any:
            least = ops.shift(ops.map("relu", ops.shift(ops.map("abs", sums), -1)), 1)
            return ops.map("div", values, least)

        divided = ops.fused("normaliser", body, ops.slice(mixed, 3, 0, e), ops.slice(mixed, 3, e, 1))
        weight = ops.reshape(w["norm"], (at.sizes["H"], 1, e))
        normed = gated_layer_norm(ops, divided, at.aside[0], weight, "sigmoid")
        return ops.contract("bhle,hed->bld", normed, w["w_o"])

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return sizes["heads"] * sizes["value_dim"]

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((m["H"], m["d"], m["e"] + 1), "accumulate"),)

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        names = "w_q", "w_k", "w_v", "w_g", "w_i", "w_f"
        q, k, v, gate, i, f = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in names)
        i, f = (GATE_CAP * xp.tanh((y + w[name].view(-1, 1, 1)) / GATE_CAP) for y, name in ((i, "b_i"), (f, "b_f")))
        enter, log_forget = xp.exp(i), -xp.log(1 + xp.exp(-f))
        matrix = decayed(xp, q * q.shape[-1] ** -0.5, k * enter, log_forget)
        mixed = matrix @ v / matrix.sum(-1, True).abs().clamp(min=1)
        centred = mixed - mixed.mean(-1, True)
        normed = gated_normed(centred, 1 / (1 + xp.exp(-gate)), w["norm"][:, None])
        values = xp.cat((v, xp.ones_like(v[..., :1])), -1)
        return Written(matrix, values, xp.einsum("bhle,hed->bld", normed, w["w_o"]))

    def _gated(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> tuple[T, T, T, T]:
        """Queries, keys times input gates, values with a column of ones, and the logarithm of forget gates."""
        q, k, v, _, i, f = read
        b, h, n, _ = ops.shape(v)
        bias_i, bias_f = (ops.reshape(w[name], (h, 1, 1)) for name in ("b_i", "b_f"))

        def enter(ops: Vocabulary[Any], k: Any, i: Any, bias: Any) -> Any:
            return ops.mul(k, ops.map("exp", _capped(ops, i, bias)))

        def forget(ops: Vocabulary[Any], f: Any, bias: Any) -> Any:
            return ops.map("log_sigmoid", _capped(ops, ops.cast(f, "accumulate"), bias))

        keys = ops.fused("input gate", enter, k, i, bias_i)
        decay = ops.fused("forget gate", forget, f, bias_f)
        return ops.scale(q, at.sizes["d"] ** -0.5), keys, ops.concat([v, ops.ones((b, h, n, 1))], 3), decay


def _capped(ops: Vocabulary[T], x: T, bias: T) -> T:
    return ops.scale(ops.map("tanh", ops.scale(ops.add(x, bias), 1 / GATE_CAP)), GATE_CAP)


mlstm = Mlstm()
