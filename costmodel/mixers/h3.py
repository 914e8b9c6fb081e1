"""H3: a short convolution of keys and a diagonal state space, with products of keys, values and queries between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.monarch import long_convolution
from costmodel.carries.sliding import Sliding
from costmodel.carry import Carry
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Site, Sizes, Weights, Written
from costmodel.mixers.gated_convolution import GatedConvolution
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.diagonal import diagonal_filter, diagonal_step, filter_weights, written_taps
from costmodel.recurrences.pieces import remembered
from costmodel.written import banded

T = TypeVar("T")


class H3(GatedConvolution):
    """Of head dimension 1, as the paper's models: k and v are multiplied channel by channel.

    The shift state space's impulse response is as long as its state, and is slid over the keys; its skip is one more
    of the first tap. Biases of projections are left out.
    """

    name: ClassVar[str] = "h3"
    title: ClassVar[str] = "H3 (shift and diagonal state spaces)"
    template: ClassVar[str] = (
        "P_ij = q_i taps_(i - j) for j <= i, taps as S4D's,  V = convolution(k) v,  q, k, v = X W,  "
        "Y = (P V + q skip V) W_o"
    )
    source: ClassVar[str] = "Fu et al. 2022, arXiv 2212.14052; HazyResearch/H3 src/models/ssm/h3.py"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "channels": Hyperparameter("D_i", 768, "inner channels", cut=True),
        "taps": Hyperparameter("K", 64, "taps of the shift state space, which is its state's size"),
        "pairs": Hyperparameter("N", 32, "complex entries of a channel's state, each for itself and its conjugate"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, E = m["D"], m["D_i"]
        read = dict.fromkeys(self.inputs(m), (D, E, 1))
        return {**read, "taps": (E, 1, m["K"]), **filter_weights(E, m["N"]), "skip": (E,), "w_o": (E, 1, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_q", "w_k", "w_v"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = read
        values = ops.mul(Sliding(k, w["taps"], (at.sizes["K"], True)).beside(ops, at.line), v)
        return long_convolution(values, diagonal_filter(w), at.kernel, (q, values)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        q, k, v = read
        values = ops.mul(remembered(ops, k, w["taps"], at.cache[1]).value, v)
        return Direct(diagonal_step(ops, values, w, at.cache[0]), aside=(q, values))

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return Kept((m["D_i"], m["N"], 2), "accumulate"), Kept((m["D_i"], m["K"] - 1))

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        n = x.shape[1]
        q, k, v = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in self.inputs(at.sizes))
        values = (banded(xp, w["taps"][:, 0], n, at.sizes["K"] - 1) @ k) * v
        return self.written_of(xp, written_taps(xp, w, n), q, values, w)


h3 = H3()
