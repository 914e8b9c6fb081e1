"""S4D: a diagonal state space for each channel, whose impulse response is a filter as long as the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.monarch import KERNELS, LONGEST, long_convolution
from costmodel.carries.spectrum import Spectrum
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import INPUT, Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.diagonal import diagonal_filter, diagonal_step, filter_weights, written_taps
from costmodel.recurrences.pieces import by_channel, gated_unit
from costmodel.written import gelu, glu, toeplitz

T = TypeVar("T")


class S4D(Mixer):
    """The model's channels themselves are convolved; a gated linear unit follows. Biases are left out."""

    name: ClassVar[str] = "s4d"
    title: ClassVar[str] = "S4D (diagonal state space)"
    template: ClassVar[str] = (
        "P_ij = taps_(i - j) for j <= i, taps_l = 2 Re sum over N of C (exp(dt A) - 1) / A exp(dt A l),  V = X,  "
        "Y = glu(gelu(P V + skip X) W_o)"
    )
    source: ClassVar[str] = "Gu et al. 2022, arXiv 2206.11893; state-spaces/s4 models/s4/s4d.py"
    structure: ClassVar[Structure] = Structure.TOEPLITZ
    carry: ClassVar[type[Carry[Any]]] = Spectrum
    kernels: ClassVar[tuple[str, ...]] = KERNELS
    causality: ClassVar[str] = "causal"
    indivisible: ClassVar[str] = "the gate after the output projection needs the sum over all channels"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "pairs": Hyperparameter("N", 32, "complex entries of a channel's state, each for itself and its conjugate"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, pairs = m["D"], m["N"]
        return {**filter_weights(D, pairs), "skip": (D,), "w_o": (D, 1, D), "w_g": (D, 1, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (INPUT,)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        x = by_channel(ops, read[0])
        return long_convolution(x, diagonal_filter(w), at.kernel, (x,)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        x = by_channel(ops, read[0])
        return Direct(diagonal_step(ops, x, w, at.cache[0]), aside=(x,))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        def activated(ops: Vocabulary[Any], mixed: Any, x: Any, skip: Any) -> Any:
            return ops.map("gelu", ops.add(mixed, ops.mul(x, skip)))

        skip = ops.reshape(w["skip"], (at.sizes["D"], 1, 1))
        y = ops.fused("skip and gelu", activated, mixed, at.aside[0], skip)
        result: T = gated_unit(ops, y, w["w_o"], w["w_g"])
        return result

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((m["D"], m["N"], 2), "accumulate"),)

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["D"], m["D"]

    def longest(self, kernel: str) -> int:
        return LONGEST.get(kernel, 0)

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return 512

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        taps = self.written_taps(xp, w, x.shape[1])
        matrix, values = toeplitz(xp, taps)[None], x.transpose(1, 2)[..., None]
        y = gelu(xp, (matrix @ values)[..., 0].transpose(1, 2) + w["skip"] * x)
        return Written(matrix, values, glu(xp, y @ w["w_o"][:, 0], y @ w["w_g"][:, 0]))

    def written_taps(self, xp: Any, w: Weights, n: int) -> Any:
        """The first n taps [D, n] of every channel."""
        return written_taps(xp, w, n)


s4d = S4D()
