"""The gated short convolution of LFM2: a depthwise convolution between two gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from costmodel.carries.neighbours import Neighbours
from costmodel.carries.sliding import Sliding
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import remembered
from costmodel.written import banded

T = TypeVar("T")


class ShortConv(Mixer):
    """Y = (C * conv(B * V)) W_o, with gates B and C of the input; causal, without an activation."""

    name: ClassVar[str] = "shortconv"
    title: ClassVar[str] = "gated short convolution (LFM2)"
    template: ClassVar[str] = "P_ij = C_i taps_(j - i) of each channel,  V = (X W_b) * (X W_v),  C = X W_c"
    source: ClassVar[str] = "Liquid AI 2025, LFM2, arXiv 2511.23404; transformers lfm2"
    structure: ClassVar[Structure] = Structure.BANDED
    carry: ClassVar[type[Carry[Any]]] = Neighbours
    kernels: ClassVar[tuple[str, ...]] = ("direct",)
    causality: ClassVar[str] = "causal"
    documents: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "channels": Hyperparameter("D_i", 2048, "channels that are convolved", cut=True),
        "taps": Hyperparameter("K", 3, "taps of the convolution"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        read = (m["D"], m["D_i"], 1)
        return dict.fromkeys(self.inputs(m), read) | {"taps": (m["D_i"], 1, m["K"]), "w_o": (m["D_i"], 1, m["D"])}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_b", "w_c", "w_v"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        b, c, v = read
        return Sliding(ops.mul(b, v), w["taps"], (at.sizes["K"], True), aside=(c,)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        b, c, v = read
        return replace(remembered(ops, ops.mul(b, v), w["taps"], at.cache[0]), aside=(c,))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bhle,hed->bld", ops.mul(mixed, at.aside[0]), w["w_o"])

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((m["D_i"], m["K"] - 1)),)

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["D_i"], m["D_i"]

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return sizes["channels"]

    def reach(self, m: Sizes) -> Dim:
        return m["K"] - 1

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        b, c, v = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in self.inputs(at.sizes))
        matrix = c * banded(xp, w["taps"][:, 0], x.shape[1], at.sizes["K"] - 1)
        return Written(matrix, b * v, xp.einsum("bhle,hed->bld", matrix @ (b * v), w["w_o"]))


shortconv = ShortConv()
