"""RWKV-7: a state with decay per channel, of which each token removes and writes in directions of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carry import Carry
from costmodel.composite import token_shift
from costmodel.dims import Shape
from costmodel.mixer import Hyperparameter, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.dplr import DiagonalLowRank, step
from costmodel.recurrences.pieces import between, layer_normed, of_heads
from costmodel.recurrences.shifted_mixer import ShiftedMixer
from costmodel.written import low_rank_matrix, standardised

T = TypeVar("T")

#: The logarithm of decay is this, -exp(-1/2), times a sigmoid: a token leaves at least 0.545 of a channel.
FASTEST = -0.6065306597126334
#: What is made of an input that is mixed with its predecessor by weights of its own.
MIXED = "r", "w", "k", "v", "a", "g"


class Rwkv7(ShiftedMixer):
    """Token shift; decay, removal rate and output gate by projections of low rank; norm of heads; a bonus r k^T v.

    As in the first layer of a model: the others mix its values into theirs, by one more projection of low rank (r_v),
    which is left out. The norm's epsilon is 1e-5 (the code's is 64e-5).
    """

    name: ClassVar[str] = "rwkv7"
    title: ClassVar[str] = "RWKV-7 (Goose)"
    template: ClassVar[str] = (
        "P_ij = r_i^T (prod of (diag(w_t) - (a_t z_t) z_t^T), j < t <= i) k_j,  z = unit(X W_k * kappa)"
    )
    source: ClassVar[str] = (
        "Peng et al. 2025, arXiv 2503.14456; BlinkDL/RWKV-LM RWKV-v7; flash-linear-attention layers/rwkv7.py"
    )
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 32, "heads", cut=True),
        "head_dim": Hyperparameter("d", 64, "head dimension"),
        "decay_rank": Hyperparameter("r_w", 128, "rank of the projection to the decay"),
        "removal_rank": Hyperparameter("r_a", 128, "rank of the projection to the removal rate"),
        "gate_rank": Hyperparameter("r_g", 224, "rank of the projection to the output gate"),
        "chunk": Hyperparameter("C", 64, "tokens of a chunk"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d, r_w, r_a, r_g = (m[name] for name in ("D", "H", "d", "r_w", "r_a", "r_g"))
        shift: dict[str, Shape] = {f"mix_{name}": (D,) for name in MIXED}
        read = {"w_r": (D, H, d), "w_k": (D, H, d), "w_v": (D, H, d)}
        decay = {"w_w1": (D, r_w), "w_w2": (r_w, H, d), "b_w": (H, d)}
        removal = {"w_a1": (D, r_a), "w_a2": (r_a, H, d), "b_a": (H, d)}
        channels = {"kappa": (H, d), "alpha": (H, d), "bonus": (H, d), "norm": (H, d), "norm_b": (H, d)}
        return {
            **shift,
            **read,
            **decay,
            **removal,
            "w_g1": (D, r_g),
            "w_g2": (r_g, H, d),
            **channels,
            "w_o": (H, d, D),
        }

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        r, k, v, z, b, decay, gate = self._read(
            ops, read[0], token_shift(ops, read[0], 1, at.line, at.packed(ops.shape(read[0])[1])), w, at
        )
        carry = DiagonalLowRank(r, k, v, z, b, decay, at.sizes["C"], at.kernel, aside=(r, k, v, gate))
        return carry, ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        x, (cache, last) = read[0], at.cache
        r, *token, gate = self._read(ops, x, ops.reshape(last, ops.shape(x)), w, at)
        ops.append(last, ops.reshape(x, ops.shape(last)), 0)
        h, d = at.sizes["H"], at.sizes["d"]
        one = tuple(ops.reshape(y, (ops.shape(x)[0], h, d)) for y in token)
        state = ops.append(cache, step(ops, cache, one), 0)  # type: ignore[arg-type]
        return Direct(ops.contract("bhnd,bhde->bhne", r, state), aside=(r, *token[:2], gate))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        weights = (of_heads(ops, w[name]) for name in ("norm", "norm_b", "bonus"))
        gated = ops.fused("norm, bonus and gate", _gated, mixed, *at.aside, *weights)
        return ops.contract("bhle,hed->bld", gated, w["w_o"])

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        def sigmoid(y: Any) -> Any:
            return 1 / (1 + xp.exp(-y))

        before = xp.cat((xp.zeros_like(x[:, :1]), x[:, :-1]), 1)
        x_r, x_w, x_k, x_v, x_a, x_g = (x + (before - x) * w[f"mix_{name}"] for name in MIXED)
        r, k, v = (xp.einsum("bld,dhe->bhle", y, w[f"w_{name}"]) for y, name in ((x_r, "r"), (x_k, "k"), (x_v, "v")))
        decay = FASTEST * sigmoid(xp.einsum("blr,rhe->bhle", xp.tanh(x_w @ w["w_w1"]), w["w_w2"]) + w["b_w"][:, None])
        a = sigmoid(xp.einsum("blr,rhe->bhle", x_a @ w["w_a1"], w["w_a2"]) + w["b_a"][:, None])
        gate = xp.einsum("blr,rhe->bhle", sigmoid(x_g @ w["w_g1"]), w["w_g2"])
        z = k * w["kappa"][:, None]
        z = z * (z.square().sum(-1, True) + 1e-5) ** -0.5
        k = k * (1 + (a - 1) * w["alpha"][:, None])
        matrix = low_rank_matrix(xp, r, k, z, a * z, decay)
        normed = standardised(matrix @ v, w["norm"][:, None], w["norm_b"][:, None])
        output = (normed + (r * k * w["bonus"][:, None]).sum(-1, True) * v) * gate
        return Written(matrix, v, xp.einsum("bhle,hed->bld", output, w["w_o"]))

    def _read(self, ops: Vocabulary[T], x: T, before: T, w: Weights, at: Site[T]) -> tuple[T, ...]:
        """r, k, v, z, b, the logarithm of decay and the gate, [B, H, n, d] each, of tokens and their predecessors."""
        x_r, x_w, x_k, x_v, x_a, x_g = between(ops, x, before, *(w[f"mix_{name}"] for name in MIXED))
        r, k, v = (ops.contract("bld,dhe->bhle", y, w[name]) for y, name in ((x_r, "w_r"), (x_k, "w_k"), (x_v, "w_v")))
        raw_w, raw_a, gate = (
            ops.contract("blr,rhe->bhle", low, w[name])
            for low, name in (
                (ops.map("tanh", ops.contract("bld,dr->blr", x_w, w["w_w1"])), "w_w2"),
                (ops.contract("bld,dr->blr", x_a, w["w_a1"]), "w_a2"),
                (ops.map("sigmoid", ops.contract("bld,dr->blr", x_g, w["w_g1"])), "w_g2"),
            )
        )
        decay = ops.fused("decay", _log_decay, raw_w, of_heads(ops, w["b_w"]))
        weights = (of_heads(ops, w[name]) for name in ("b_a", "kappa", "alpha"))
        z, b, k = ops.fused("keys", _keys, k, raw_a, *weights)
        return r, k, v, z, b, decay, gate


def _log_decay(ops: Vocabulary[T], raw: T, bias: T) -> T:
    return ops.scale(ops.map("sigmoid", ops.add(ops.cast(raw, "accumulate"), bias)), FASTEST)


def _keys(ops: Vocabulary[T], k: T, raw: T, bias: T, kappa: T, alpha: T) -> tuple[T, T, T]:
    """Directions z of unit length that are read, b = a z that are removed, and keys k (1 + (a - 1) alpha)."""
    a = ops.map("sigmoid", ops.add(raw, bias))
    z = ops.mul(k, kappa)
    z = ops.mul(z, ops.map("rsqrt_eps", ops.sum(ops.map("square", z), (3,))))
    kept = ops.shift(ops.mul(ops.shift(a, -1), alpha), 1)
    return z, ops.mul(z, a), ops.mul(k, kept)


def _gated(ops: Vocabulary[T], mixed: T, r: T, k: T, v: T, gate: T, *weights: T) -> T:
    """(layer norm of each head + (r k bonus) v) gate."""
    norm, shift, bonus = weights
    normed = layer_normed(ops, mixed, norm, shift)
    own = ops.mul(v, ops.sum(ops.mul(ops.mul(r, k), bonus), (3,)))
    return ops.mul(ops.add(normed, own), gate)


rwkv7 = Rwkv7()
