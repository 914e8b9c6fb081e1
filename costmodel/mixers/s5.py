"""S5: one diagonal state space for all channels together, with as many inputs and outputs as channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.state import State
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import INPUT, Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.complex_states import KERNELS, ComplexStates
from costmodel.recurrences.diagonal import discretised, factor
from costmodel.written import gelu, toeplitz

T = TypeVar("T")

RATES = ("log_step", "log_decay", "frequency")


class S5(Mixer):
    """Heads are the complex entries of the state, mixed by no matrix but the input's and the output's.

    The output matrix holds twice the real, and minus twice the imaginary, parts of C: C and the state of conjugates
    together give twice a real part. After it the code's "half_glu1". Rates are -exp(log_decay) + i frequency, where
    the code has their real parts as weights, and clips them. ``associative`` is the code's own scan; ``chunked`` makes
    products of matrices of it.
    """

    name: ClassVar[str] = "s5"
    title: ClassVar[str] = "S5 (one diagonal state space for all channels)"
    template: ClassVar[str] = (
        "P_ij = exp(dt A (i - j)) for j <= i (complex),  V = (exp(dt A) - 1) / A B X,  "
        "U = gelu(2 Re(C P V) + skip X),  Y = U sigmoid(U W_g)"
    )
    source: ClassVar[str] = "Smith et al. 2022, arXiv 2208.04933; lindermanlab/S5 s5/ssm.py, s5/layers.py"
    structure: ClassVar[Structure] = Structure.SEMISEPARABLE
    carry: ClassVar[type[Carry[Any]]] = State
    kernels: ClassVar[tuple[str, ...]] = KERNELS
    causality: ClassVar[str] = "causal"
    indivisible: ClassVar[str] = "the activation after the output matrix needs the sum over all states"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "pairs": Hyperparameter("N", 128, "complex entries of the state, each for itself and its conjugate"),
        "chunk": Hyperparameter("C", 256, "tokens of a chunk"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, N = m["D"], m["N"]
        rates = {"log_step": (N,), "log_decay": (N, 1), "frequency": (N, 1)}
        return {**rates, "w_b": (D, N, 2), "w_c": (N, 2, D), "skip": (D,), "w_g": (D, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (INPUT,)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        u, growth, turn = self._driven(ops, read[0], w)
        return ComplexStates(u, growth, turn, at.sizes["C"], at.kernel, aside=read), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        u, growth, turn = self._driven(ops, read[0], w)
        b, h, n, _ = ops.shape(u)

        def body(ops: Vocabulary[Any], state: Any, u: Any, growth: Any, turn: Any) -> Any:
            return ops.add(ops.complex_mul(state, factor(ops, growth, turn)), ops.reshape(u, (b, h, 2)))

        state = ops.append(at.cache[0], ops.fused("state update", body, at.cache[0], u, growth, turn), 0)
        return Direct(ops.cast(ops.reshape(state, (b, h, n, 2)), "model"), aside=read)

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        def activated(ops: Vocabulary[Any], y: Any, x: Any, skip: Any) -> Any:
            return ops.map("gelu", ops.add(y, ops.mul(x, skip)))

        def gated(ops: Vocabulary[Any], y: Any, gate: Any) -> Any:
            return ops.mul(y, ops.map("sigmoid", gate))

        y = ops.contract("bhle,hed->bld", mixed, w["w_c"])
        y = ops.fused("skip and gelu", activated, y, at.aside[0], w["skip"])
        result: T = ops.fused("gate", gated, y, ops.contract("bld,df->blf", y, w["w_g"]))
        return result

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((m["N"], 2), "accumulate"),)

    def grain(self, m: Sizes) -> int:
        return int(m["C"])

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["N"], m["N"]

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return 128

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        rate = xp.complex(-xp.exp(w["log_decay"][:, 0]), w["frequency"][:, 0])
        turned = xp.exp(w["log_step"]) * rate
        b = xp.complex(w["w_b"][..., 0], w["w_b"][..., 1]) * (xp.exp(turned) - 1) / rate
        values = xp.einsum("bld,dh->bhl", x.to(b.dtype), b)[..., None]
        matrix = toeplitz(xp, xp.exp(turned[:, None] * xp.arange(x.shape[1])))[None]
        c = xp.complex(w["w_c"][:, 0], -w["w_c"][:, 1])
        y = xp.einsum("bhle,hd->bld", matrix @ values, c).real + w["skip"] * x
        y = gelu(xp, y)
        return Written(matrix, values, y / (1 + xp.exp(-(y @ w["w_g"]))))

    def _driven(self, ops: Vocabulary[T], x: T, w: Weights) -> tuple[T, T, T]:
        """What the input adds to each state [B, N, n, 2], and the rates [N, 1] of the states."""
        n, b = w["log_step"], w["w_b"]
        states = ops.shape(n)[0]

        def held(ops: Vocabulary[Any], b: Any, *rates: Any) -> Any:
            growth, turn, held = discretised(ops, *rates)
            growth, turn = (ops.reshape(rate, (states, 1)) for rate in (growth, turn))
            return ops.complex_mul(b, ops.reshape(held, (states, 2))), growth, turn

        b, growth, turn = ops.fused("discretised", held, b, *(w[name] for name in RATES))
        return ops.contract("bld,dhe->bhle", x, b), growth, turn


s5 = S5()
