"""Mamba-2: a state space with a scalar decay for each head (SSD)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import State
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.chunk_pairs import spread
from costmodel.recurrences.gated import KERNELS, Gated
from costmodel.recurrences.pieces import convolution_step, gated_normed_first, gated_step, short_convolution
from costmodel.written import causal_convolution, decayed, gated_normed

T = TypeVar("T")

TAPS = "taps_x", "taps_b", "taps_c"


class Mamba2(Mixer):
    """Keys are B, queries C, values x times the step dt; decay is exp(-exp(A) dt).

    The output's norm is of each head, so that tensor parallelism needs no sum for it (the code's is of each group).
    """

    name: ClassVar[str] = "mamba2"
    title: ClassVar[str] = "Mamba-2 (SSD: state space with scalar decay)"
    template: ClassVar[str] = (
        "P_ij = exp(-exp(A) sum of dt_t, j < t <= i) C_i^T B_j dt_j,  V = silu(conv(X W_x)),  Y = P V + skip V"
    )
    source: ClassVar[str] = "Dao & Gu 2024, arXiv 2405.21060; 8 groups: Waleffe et al. 2024, arXiv 2406.07887"
    structure: ClassVar[Structure] = Structure.SEMISEPARABLE
    carry: ClassVar[type[Carry[Any]]] = State
    kernels: ClassVar[tuple[str, ...]] = KERNELS
    causality: ClassVar[str] = "causal"
    documents: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 128, "heads", cut=True),
        "kv_heads": Hyperparameter("H_kv", 8, "groups of heads that share B and C", cut=True),
        "head_dim": Hyperparameter("d", 128, "state dimension: that of B and C"),
        "value_dim": Hyperparameter("e", 64, "head dimension of x"),
        "taps": Hyperparameter("K", 4, "taps of the short convolution"),
        "chunk": Hyperparameter("C", 256, "tokens of a chunk"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, G, d, e, K = (m[name] for name in ("D", "H", "H_kv", "d", "e", "K"))
        read = {"w_z": (D, H, e), "w_x": (D, H, e), "w_b": (D, G, d), "w_c": (D, G, d), "w_dt": (D, H, 1)}
        taps = {"taps_x": (H, e, K), "taps_b": (G, d, K), "taps_c": (G, d, K)}
        return {**read, **taps, "A": (H,), "b_dt": (H,), "skip": (H,), "norm": (e,), "w_o": (H, e, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_z", "w_x", "w_b", "w_c", "w_dt"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        z, *streams, raw = read
        x, k, q = (short_convolution(ops, y, w[name], at) for y, name in zip(streams, TAPS, strict=True))
        v, decay = self.step(ops, x, raw, w)
        return Gated(q, k, v, decay, at.sizes["C"], at.kernel, aside=(z, x)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        z, *streams, raw = read
        convolved = zip(streams, TAPS, at.cache[1:], strict=True)
        x, k, q = (convolution_step(ops, y, w[name], cache) for y, name, cache in convolved)
        v, decay = self.step(ops, x, raw, w)
        heads = at.sizes["H"]
        return gated_step(ops, (spread(ops, q, heads), spread(ops, k, heads), v), decay, at.cache[0], (z, x))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        z, x = at.aside
        skip = ops.reshape(w["skip"], (at.sizes["H"], 1, 1))
        return ops.contract("bhle,hed->bld", gated_normed_first(ops, mixed, x, skip, z, w["norm"]), w["w_o"])

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        before = m["K"] - 1
        groups = Kept((m["H_kv"] * m["d"], before))
        return Kept((m["H"], m["d"], m["e"]), "accumulate"), Kept((m["H"] * m["e"], before)), groups, groups

    def grain(self, m: Sizes) -> int:
        return int(m["C"])

    def overlap(self, m: Sizes) -> Dim:
        return m["K"] - 1

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return sizes["heads"] * sizes["value_dim"] // 2

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H_kv"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        names = "w_z", "w_x", "w_b", "w_c", "w_dt"
        z, *streams, raw = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in names)
        v, k, q = (causal_convolution(xp, y, w[name]) for y, name in zip(streams, TAPS, strict=True))
        q, k = (y.repeat_interleave(at.sizes["H"] // at.sizes["H_kv"], 1) for y in (q, k))
        dt = xp.log(1 + xp.exp(raw + w["b_dt"].view(-1, 1, 1)))
        matrix = decayed(xp, q, k * dt, -xp.exp(w["A"]).view(-1, 1, 1) * dt)
        matrix = matrix * self.written_weights(xp, x, w, at)
        gated = (matrix @ v + w["skip"].view(-1, 1, 1) * v) * z / (1 + xp.exp(-z))
        return Written(matrix, v, xp.einsum("bhle,hed->bld", gated_normed(gated, 1, w["norm"]), w["w_o"]))

    def written_weights(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Any:
        """What the entries of P are multiplied with besides."""
        return 1

    def step(self, ops: Vocabulary[T], x: T, raw: T, w: Weights) -> tuple[T, T]:
        """Values [B, H, n, e] and the logarithm of decay [B, H, n, 1], from x and the raw step [B, H, n, 1]."""
        h = ops.shape(x)[1]
        bias, rate = (ops.reshape(w[name], (h, 1, 1)) for name in ("b_dt", "A"))

        def body(ops: Vocabulary[Any], x: Any, raw: Any, bias: Any, rate: Any) -> Any:
            dt = ops.map("softplus", ops.add(ops.cast(raw, "accumulate"), bias))
            return ops.mul(x, dt), ops.map("neg", ops.mul(dt, ops.map("exp", rate)))

        v, decay = ops.fused("step", body, x, raw, bias, rate)
        return v, decay


mamba2 = Mamba2()
