"""What H3 and Hyena have in common: a long convolution of gated values, in channels that a query gates again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.monarch import KERNELS, LONGEST
from costmodel.carries.spectrum import Spectrum
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim
from costmodel.mixer import Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import toeplitz

T = TypeVar("T")


class GatedConvolution(Mixer):
    """Y = q (convolution(V) + skip V) W_o in D_i channels, where short convolutions of K taps have a part in q or V.

    Carries lay q and V aside.
    """

    structure: ClassVar[Structure] = Structure.TOEPLITZ
    carry: ClassVar[type[Carry[Any]]] = Spectrum
    kernels: ClassVar[tuple[str, ...]] = KERNELS
    causality: ClassVar[str] = "causal"

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        def gated(ops: Vocabulary[Any], mixed: Any, q: Any, values: Any, skip: Any) -> Any:
            return ops.mul(ops.add(mixed, ops.mul(values, skip)), q)

        skip = ops.reshape(w["skip"], (at.sizes["D_i"], 1, 1))
        return ops.contract("bhle,hed->bld", ops.fused("skip and gate", gated, mixed, *at.aside, skip), w["w_o"])

    def overlap(self, m: Sizes) -> Dim:
        return m["K"] - 1

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["D_i"], m["D_i"]

    def longest(self, kernel: str) -> int:
        return LONGEST.get(kernel, 0)

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return sizes["channels"]

    def written_of(self, xp: Any, filters: Any, q: Any, values: Any, w: Weights) -> Written:
        """By the definition above, from the taps of the long convolution [D_i, n]."""
        mixing = toeplitz(xp, filters)
        mixed = mixing @ values + w["skip"][:, None, None] * values
        return Written(mixing * q, values, xp.einsum("bhle,hed->bld", mixed * q, w["w_o"]))
