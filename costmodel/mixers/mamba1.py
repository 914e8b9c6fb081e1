"""Mamba: a selective state space for each channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.state import State
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import convolution_step, short_convolution
from costmodel.recurrences.selective import KERNELS, Selective, selective_output, selective_step
from costmodel.written import causal_convolution, decayed

T = TypeVar("T")


class Mamba(Mixer):
    """Steps, and the keys B and queries C that all channels share, are projections of the convolved channels.

    These couple the channels: where tensor parallelism cuts them, ranks sum up their parts of the projection (as vLLM's
    mamba_mixer.py, whose x_proj is row-parallel). The convolution's bias is left out.
    """

    name: ClassVar[str] = "mamba1"
    title: ClassVar[str] = "Mamba (selective state space)"
    template: ClassVar[str] = (
        "P_ij = sum over N of C_i exp(A sum of dt_t, j < t <= i) B_j dt_j,  V = silu(conv(X W_x)),  "
        "Y = (P V + skip V) silu(X W_z)"
    )
    source: ClassVar[str] = "Gu & Dao 2023, arXiv 2312.00752; state-spaces/mamba mamba_simple.py"
    structure: ClassVar[Structure] = Structure.SEMISEPARABLE
    carry: ClassVar[type[Carry[Any]]] = State
    kernels: ClassVar[tuple[str, ...]] = KERNELS
    causality: ClassVar[str] = "causal"
    documents: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "channels": Hyperparameter("D_i", 5120, "inner channels", cut=True),
        "state_dim": Hyperparameter("N", 16, "entries of a channel's state"),
        "step_rank": Hyperparameter("r_dt", 160, "rank of the projection to the step"),
        "taps": Hyperparameter("K", 4, "taps of the short convolution"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, E, N, R = (m[name] for name in ("D", "D_i", "N", "r_dt"))
        read = {"w_x": (D, E, 1), "w_z": (D, E, 1)}
        inner = {"taps": (E, 1, m["K"]), "w_p": (E, R + 2 * N), "w_dt": (R, E, 1)}
        return {**read, **inner, "b_dt": (E,), "A": (E, N), "skip": (E,), "w_o": (E, 1, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_x", "w_z"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        x = short_convolution(ops, read[0], w["taps"], at)
        dt, b, c = self._selection(ops, x, w, at)
        return Selective(x, dt, read[1], b, c, w["A"], w["b_dt"], w["skip"], at.kernel), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        x = convolution_step(ops, read[0], w["taps"], at.cache[1])
        dt, b, c = self._selection(ops, x, w, at)
        x, dt, z, b, c = (ops.reshape(y, (*ops.shape(y)[:2], ops.shape(y)[3])) for y in (x, dt, read[1], b, c))
        bias, skip = (ops.reshape(w[name], (at.sizes["D_i"], 1)) for name in ("b_dt", "skip"))

        def body(ops: Vocabulary[Any], state: Any, x: Any, dt: Any, b: Any, rate: Any, bias: Any) -> Any:
            a = ops.map("neg", ops.map("exp", ops.cast(rate, "accumulate")))
            return selective_step(ops, state, (x, dt, b), a, bias)

        after = ops.fused("state update", body, at.cache[0], x, dt, b, w["A"], bias)
        state = ops.append(at.cache[0], after, 0)
        y = ops.fused("output", lambda ops, h, *of: selective_output(ops, h, of[:3], of[3]), state, x, z, c, skip)
        return Direct(ops.reshape(y, (*ops.shape(y), 1)))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bhle,hed->bld", mixed, w["w_o"])

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return sizes["channels"] // 2

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return Kept((m["D_i"], m["N"]), "accumulate"), Kept((m["D_i"], m["K"] - 1))

    def overlap(self, m: Sizes) -> Dim:
        return m["K"] - 1

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["D_i"], m["D_i"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        channels, z = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_x", "w_z"))
        v = causal_convolution(xp, channels, w["taps"])
        rank, states = at.sizes["r_dt"], at.sizes["N"]
        low, b, c = xp.einsum("bhle,hr->blr", v, w["w_p"]).split((rank, states, states), -1)
        dt = xp.log(1 + xp.exp(xp.einsum("blr,rhe->bhle", low, w["w_dt"]) + w["b_dt"].view(-1, 1, 1)))
        mixing = decayed(xp, c[:, None].expand(*v.shape[:3], -1), b[:, None] * dt, -xp.exp(w["A"])[:, None] * dt)
        matrix = (mixing + xp.diag_embed(w["skip"][:, None].expand(*v.shape[:3]))) * (z / (1 + xp.exp(-z)))
        return Written(matrix, v, xp.einsum("bhle,hed->bld", matrix @ v, w["w_o"]))

    def _selection(self, ops: Vocabulary[T], x: T, w: Weights, at: Site[T]) -> tuple[T, T, T]:
        """Steps before their bias [B, E, n, 1], keys and queries [B, 1, n, N], from the convolved channels."""
        rank, states = at.sizes["r_dt"], at.sizes["N"]
        low = ops.contract("bhl,hr->blr", ops.reshape(x, ops.shape(x)[:3]), w["w_p"])
        if at.tensor is not None:
            low = ops.all_reduce(low, at.tensor)
        dt = ops.contract("blr,rhe->bhle", ops.slice(low, 2, 0, rank), w["w_dt"])
        b, n, r = ops.shape(low)
        shared = ops.reshape(low, (b, 1, n, r))
        return dt, ops.slice(shared, 3, rank, states), ops.slice(shared, 3, rank + states, states)


mamba1 = Mamba()
