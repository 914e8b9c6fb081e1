"""ConvMixer: a depthwise convolution along the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.neighbours import Neighbours
from costmodel.carries.sliding import Sliding, around
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import INPUT, Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import by_channel, by_token, remembered
from costmodel.written import banded, gelu

T = TypeVar("T")


class ConvMixer(Mixer):
    """One matrix for each channel, then the GELU and the pointwise convolution (the output projection) of the paper.

    The paper's batch norms, folded into taps and projection as at inference, and its residual are left out.
    """

    name: ClassVar[str] = "convmixer"
    title: ClassVar[str] = "ConvMixer (depthwise convolution)"
    template: ClassVar[str] = "P_ij = taps_(j - i) of each channel,  V = X,  Y = gelu(P V) W_o"
    source: ClassVar[str] = "Trockman & Kolter 2022, arXiv 2201.09792; github.com/locuslab/convmixer"
    structure: ClassVar[Structure] = Structure.BANDED
    carry: ClassVar[type[Carry[Any]]] = Neighbours
    kernels: ClassVar[tuple[str, ...]] = ("direct",)
    documents: ClassVar[bool] = True
    indivisible: ClassVar[str] = "the input is convolved as it is, without a projection that could be cut"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {"taps": Hyperparameter("K", 9, "taps of the convolution")}

    def weights(self, m: Sizes) -> dict[str, Shape]:
        return {"taps": (m["D"], 1, m["K"]), "w_o": (m["D"], m["D"])}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (INPUT,)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        return Sliding(by_channel(ops, read[0]), w["taps"], (at.sizes["K"], at.mask.causal)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        return remembered(ops, by_channel(ops, read[0]), w["taps"], at.cache[0])

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bld,df->blf", ops.map("gelu", by_token(ops, mixed)), w["w_o"])

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((m["D"], m["K"] - 1)),)

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["D"], m["D"]

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return 1024

    def reach(self, m: Sizes) -> Dim:
        return m["K"] - 1

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        left, _ = around(at.sizes["K"], at.mask.causal)
        matrix = banded(xp, w["taps"][:, 0], x.shape[1], left)[None]
        values = x.transpose(1, 2)[..., None]
        mixed = (matrix @ values)[..., 0].transpose(1, 2)
        return Written(matrix, values, gelu(xp, mixed) @ w["w_o"])


convmixer = ConvMixer()
