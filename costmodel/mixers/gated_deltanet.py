"""Gated DeltaNet: linear attention with decay that replaces what its state holds for a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.state import State
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.delta import KERNELS, Delta, step
from costmodel.recurrences.pieces import convolution_step, gated_norm, short_convolution, unit
from costmodel.written import causal_convolution, delta_matrix, gated_normed

T = TypeVar("T")

STREAMS = "w_q", "w_k", "w_v"
TAPS = "taps_q", "taps_k", "taps_v"


class GatedDeltaNet(Mixer):
    """Short convolutions, keys and queries of unit length, decay exp(-exp(A) softplus(.)) a head, gated norm."""

    name: ClassVar[str] = "gated-deltanet"
    title: ClassVar[str] = "gated DeltaNet (delta rule with scalar decay)"
    template: ClassVar[str] = (
        "P_ij = b_j q_i^T (prod of a_t (I - b_t k_t k_t^T), j < t <= i) k_j / sqrt(d),  V = silu(conv(X W_v))"
    )
    source: ClassVar[str] = "Yang et al. 2024, arXiv 2412.06464; flash-linear-attention layers/gated_deltanet.py"
    structure: ClassVar[Structure] = Structure.SEMISEPARABLE
    carry: ClassVar[type[Carry[Any]]] = State
    kernels: ClassVar[tuple[str, ...]] = KERNELS
    causality: ClassVar[str] = "causal"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 6, "heads", cut=True),
        "head_dim": Hyperparameter("d", 256, "head dimension of queries and keys"),
        "value_dim": Hyperparameter("e", 512, "head dimension of values"),
        "taps": Hyperparameter("K", 4, "taps of the short convolution"),
        "chunk": Hyperparameter("C", 64, "tokens of a chunk"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d, e, K = (m[name] for name in ("D", "H", "d", "e", "K"))
        read = {"w_q": (D, H, d), "w_k": (D, H, d), "w_v": (D, H, e), "w_g": (D, H, e)}
        gates = {"w_b": (D, H, 1), "w_a": (D, H, 1), "A": (H,), "b_a": (H,)}
        taps = {"taps_q": (H, d, K), "taps_k": (H, d, K), "taps_v": (H, e, K)}
        return {**read, **gates, **taps, "norm": (e,), "w_o": (H, e, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (*STREAMS, "w_g", "w_b", "w_a")

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = (short_convolution(ops, y, w[name], at) for y, name in zip(read[:3], TAPS, strict=True))
        q, k = self._units(ops, q, k, at)
        beta, decay = ops.map("sigmoid", read[4]), self._log_decay(ops, read[5], w)
        return Delta(q, k, v, beta, decay, at.sizes["C"], at.kernel, aside=(read[3],)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        convolved = zip(read[:3], TAPS, at.cache[1:], strict=True)
        q, k, v = (convolution_step(ops, y, w[name], cache) for y, name, cache in convolved)
        q, k = self._units(ops, q, k, at)
        beta, decay = ops.map("sigmoid", read[4]), self._log_decay(ops, read[5], w)
        k, v, beta, decay = (ops.reshape(y, (*ops.shape(y)[:2], ops.shape(y)[3])) for y in (k, v, beta, decay))
        state = ops.append(at.cache[0], step(ops, at.cache[0], (k, v, beta), decay), 0)
        return Direct(ops.contract("bhnd,bhde->bhne", q, state), aside=(read[3],))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bhle,hed->bld", gated_norm(ops, mixed, at.aside[0], w["norm"]), w["w_o"])

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        before = m["K"] - 1
        keys, values = Kept((m["H"] * m["d"], before)), Kept((m["H"] * m["e"], before))
        return Kept((m["H"], m["d"], m["e"]), "accumulate"), keys, keys, values

    def grain(self, m: Sizes) -> int:
        chunk = int(m["C"])
        return chunk * max(1, -(-(int(m["K"]) - 1) // chunk))

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        names = (*STREAMS, "w_g", "w_b", "w_a")
        *streams, gate, b, a = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in names)
        q, k, v = (causal_convolution(xp, y, w[name]) for y, name in zip(streams, TAPS, strict=True))
        q, k = (y * (y.square().sum(-1, True) + 1e-5) ** -0.5 for y in (q, k))
        rate = xp.exp(w["A"]).view(-1, 1, 1)
        decay = -rate * xp.log(1 + xp.exp(a + w["b_a"].view(-1, 1, 1)))
        matrix = delta_matrix(xp, q * q.shape[-1] ** -0.5, k, 1 / (1 + xp.exp(-b)), decay)
        normed = gated_normed(matrix @ v, gate / (1 + xp.exp(-gate)), w["norm"])
        return Written(matrix, v, xp.einsum("bhle,hed->bld", normed, w["w_o"]))

    def _units(self, ops: Vocabulary[T], q: T, k: T, at: Site[T]) -> tuple[T, T]:
        return ops.scale(unit(ops, q), at.sizes["d"] ** -0.5), unit(ops, k)

    def _log_decay(self, ops: Vocabulary[T], raw: T, w: Weights) -> T:
        """[B, H, n, 1], from the input's projection."""
        h = ops.shape(raw)[1]
        bias, rate = (ops.reshape(w[name], (h, 1, 1)) for name in ("b_a", "A"))

        def body(ops: Vocabulary[Any], raw: Any, bias: Any, rate: Any) -> Any:
            dt = ops.map("softplus", ops.add(ops.cast(raw, "accumulate"), bias))
            return ops.map("neg", ops.mul(dt, ops.map("exp", rate)))

        decay: T = ops.fused("decay", body, raw, bias, rate)
        return decay


gated_deltanet = GatedDeltaNet()
