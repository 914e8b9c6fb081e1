"""RWKV-5 and RWKV-6: a state with decay for each channel, and a bonus for the token itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carry import Carry
from costmodel.composite import token_shift
from costmodel.dims import Shape
from costmodel.mixer import Hyperparameter, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.gated import Gated
from costmodel.recurrences.pieces import between, gated_step, layer_normed, of_heads
from costmodel.recurrences.shifted_mixer import ShiftedMixer
from costmodel.written import decayed, standardised

T = TypeVar("T")

#: What has a projection [D, H, d] of its own mixture of a token and its predecessor.
READ = "r", "k", "v", "g"


class MatrixRwkv(ShiftedMixer):
    """o_t = r_t (S_{t-1} + diag(u) k_t v_t^T), S_t = diag(w_t) S_{t-1} + k_t v_t^T, norm of heads, gate silu(G).

    The bonus of a token for itself needs no state, so that only the rest is carried. The norm's epsilon is 1e-5 (the
    code's is 64e-5).
    """

    @abstractmethod
    def shifted(self, ops: Vocabulary[T], x: T, before: T, w: Weights) -> tuple[T, ...]:
        """Mixtures of tokens and their predecessors: those of ``READ``, and that of the decay if it has one."""

    @abstractmethod
    def log_decay(self, ops: Vocabulary[T], mixture: tuple[T, ...], w: Weights) -> T:
        """[B, H, n, d], or [H, d] where it is a weight."""

    @abstractmethod
    def written_shift(self, xp: Any, x: Any, before: Any, w: Weights) -> tuple[Any, ...]:
        """As ``shifted``."""

    @abstractmethod
    def written_decay(self, xp: Any, mixture: tuple[Any, ...], w: Weights) -> Any:
        """The logarithm of decay, to be broadcast to [B, H, n, d]."""

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d = m["D"], m["H"], m["d"]
        channels: dict[str, Shape] = dict.fromkeys(("decay", "bonus", "norm", "norm_b"), (H, d))
        return {f"w_{name}": (D, H, d) for name in READ} | channels | {"w_o": (H, d, D)}

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        r, k, v, gate, decay = self._read(
            ops, read[0], token_shift(ops, read[0], 1, at.line, at.packed(ops.shape(read[0])[1])), w
        )
        weight = len(ops.shape(decay)) == 2
        given = {"log_decay": None, "head_log_decay": decay} if weight else {"log_decay": decay}
        chunk, kernel = at.sizes["C"], at.kernel
        return Gated(r, k, v, chunk=chunk, kernel=kernel, before=True, aside=(r, k, v, gate), **given), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        x, (cache, last) = read[0], at.cache
        r, k, v, gate, decay = self._read(ops, x, ops.reshape(last, ops.shape(x)), w)
        ops.append(last, ops.reshape(x, ops.shape(last)), 0)
        if len(ops.shape(decay)) == 2:
            decay = ops.reshape(decay, (1, at.sizes["H"], 1, at.sizes["d"]))
        return gated_step(ops, (r, k, v), decay, cache, (r, k, v, gate), before=True)

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        weights = (of_heads(ops, w[name]) for name in ("bonus", "norm", "norm_b"))
        gated = ops.fused("bonus, norm and gate", _gated, mixed, *at.aside, *weights)
        return ops.contract("bhle,hed->bld", gated, w["w_o"])

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        before = xp.cat((xp.zeros_like(x[:, :1]), x[:, :-1]), 1)
        mixtures = self.written_shift(xp, x, before, w)
        r, k, v, g = (xp.einsum("bld,dhe->bhle", y, w[f"w_{name}"]) for y, name in zip(mixtures[:4], READ, strict=True))
        decay = self.written_decay(xp, mixtures[4:], w).expand(r.shape)
        early = decayed(xp, xp.cat((r[:, :, 1:], r[:, :, :1]), 2), k, decay)  # row i is what r_{i + 1} reads of S_i
        matrix = xp.cat((xp.zeros_like(early[:, :, :1]), early[:, :, :-1]), 2)
        own = (r * k * w["bonus"][:, None]).sum(-1, True) * v
        normed = standardised(matrix @ v + own, w["norm"][:, None], w["norm_b"][:, None])
        gated = normed * g / (1 + xp.exp(-g))
        return Written(matrix, v, xp.einsum("bhle,hed->bld", gated, w["w_o"]))

    def _read(self, ops: Vocabulary[T], x: T, before: T, w: Weights) -> tuple[T, ...]:
        """r, k, v and gate [B, H, n, d], and the logarithm of decay."""
        mixtures = self.shifted(ops, x, before, w)
        products = (
            ops.contract("bld,dhe->bhle", y, w[f"w_{name}"]) for y, name in zip(mixtures[:4], READ, strict=True)
        )
        return (*products, self.log_decay(ops, mixtures[4:], w))


def _gated(ops: Vocabulary[T], mixed: T, r: T, k: T, v: T, gate: T, *weights: T) -> T:
    """(layer norm of each head of mixed + (r k bonus) v) silu(gate)."""
    bonus, norm, shift = weights
    own = ops.mul(v, ops.sum(ops.mul(ops.mul(r, k), bonus), (3,)))
    return ops.mul(layer_normed(ops, ops.add(mixed, own), norm, shift), ops.map("silu", gate))


def _negative_exponential(ops: Vocabulary[T], raw: T) -> T:
    return ops.map("neg", ops.map("exp", ops.cast(raw, "accumulate")))


class Rwkv5(MatrixRwkv):
    """Decay exp(-exp(decay)) and token shift are weights, of each channel."""

    name: ClassVar[str] = "rwkv5"
    title: ClassVar[str] = "RWKV-5 (Eagle)"
    template: ClassVar[str] = (
        "P_ij = r_i^T diag(w)^(i - 1 - j) k_j for j < i,  P_ii = r_i^T diag(u) k_i,  w = exp(-exp(decay))"
    )
    source: ClassVar[str] = "Peng et al. 2024, arXiv 2404.05892; BlinkDL/RWKV-LM RWKV-v5"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 32, "heads", cut=True),
        "head_dim": Hyperparameter("d", 64, "head dimension"),
        "chunk": Hyperparameter("C", 64, "tokens of a chunk"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        shift: dict[str, Shape] = {f"mix_{name}": (m["D"],) for name in READ}
        return shift | super().weights(m)

    def shifted(self, ops: Vocabulary[T], x: T, before: T, w: Weights) -> tuple[T, ...]:
        return between(ops, x, before, *(w[f"mix_{name}"] for name in READ))

    def log_decay(self, ops: Vocabulary[T], mixture: tuple[T, ...], w: Weights) -> T:
        decay: T = _negative_exponential(ops, w["decay"])
        return decay

    def written_shift(self, xp: Any, x: Any, before: Any, w: Weights) -> tuple[Any, ...]:
        return tuple(x + (before - x) * w[f"mix_{name}"] for name in READ)

    def written_decay(self, xp: Any, mixture: tuple[Any, ...], w: Weights) -> Any:
        return -xp.exp(w["decay"])[:, None]


class Rwkv6(MatrixRwkv):
    """Decay and token shift depend on the input, by projections of low rank."""

    name: ClassVar[str] = "rwkv6"
    title: ClassVar[str] = "RWKV-6 (Finch)"
    template: ClassVar[str] = (
        "P_ij = r_i^T diag(prod of w_t, j < t < i) k_j for j < i,  P_ii = r_i^T diag(u) k_i,  "
        "w = exp(-exp(decay + tanh(X W_1) W_2))"
    )
    source: ClassVar[str] = (
        "Peng et al. 2024, arXiv 2404.05892; BlinkDL/RWKV-LM RWKV-v6; flash-linear-attention ops/rwkv6"
    )
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        **Rwkv5.sizes,
        "shift_rank": Hyperparameter("r_x", 32, "rank of the projection to the token shift"),
        "decay_rank": Hyperparameter("r_w", 64, "rank of the projection to the decay"),
    }
    #: What has a mixture of its own.
    mixtures: ClassVar[int] = len(READ) + 1

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d, r_x, r_w, count = m["D"], m["H"], m["d"], m["r_x"], m["r_w"], self.mixtures
        shift = {"mix_all": (D,), "mix": (count, D), "w_mix1": (D, count, r_x), "w_mix2": (count, r_x, D)}
        return {**shift, **super().weights(m), "w_w1": (D, r_w), "w_w2": (r_w, H, d)}

    def shifted(self, ops: Vocabulary[T], x: T, before: T, w: Weights) -> tuple[T, ...]:
        (rough,) = between(ops, x, before, w["mix_all"])
        low = ops.map("tanh", ops.contract("bld,dmr->blmr", rough, w["w_mix1"]))
        moved = ops.contract("blmr,mrd->mbld", low, w["w_mix2"])

        def body(ops: Vocabulary[Any], x: Any, before: Any, moved: Any, fixed: Any) -> tuple[Any, ...]:
            difference, count = ops.map("sub", before, x), self.mixtures
            pairs = (
                (ops.reshape(ops.slice(moved, 0, i, 1), ops.shape(x)), ops.slice(fixed, 0, i, 1)) for i in range(count)
            )
            return tuple(ops.add(x, ops.mul(difference, ops.add(own, common))) for own, common in pairs)

        mixtures: tuple[T, ...] = ops.fused("token shift of its own", body, x, before, moved, w["mix"])
        return mixtures

    def log_decay(self, ops: Vocabulary[T], mixture: tuple[T, ...], w: Weights) -> T:
        low = ops.map("tanh", ops.contract("bld,dr->blr", mixture[0], w["w_w1"]))
        raw = ops.contract("blr,rhe->bhle", low, w["w_w2"])

        def body(ops: Vocabulary[Any], raw: Any, bias: Any) -> Any:
            return _negative_exponential(ops, ops.add(raw, bias))

        decay: T = ops.fused("decay", body, raw, of_heads(ops, w["decay"]))
        return decay

    def written_shift(self, xp: Any, x: Any, before: Any, w: Weights) -> tuple[Any, ...]:
        rough = x + (before - x) * w["mix_all"]
        moved = [xp.tanh(rough @ w["w_mix1"][:, i]) @ w["w_mix2"][i] + w["mix"][i] for i in range(self.mixtures)]
        return tuple(x + (before - x) * own for own in moved)

    def written_decay(self, xp: Any, mixture: tuple[Any, ...], w: Weights) -> Any:
        return -xp.exp(xp.einsum("blr,rhe->bhle", xp.tanh(mixture[0] @ w["w_w1"]), w["w_w2"]) + w["decay"][:, None])


rwkv5 = Rwkv5()
rwkv6 = Rwkv6()
