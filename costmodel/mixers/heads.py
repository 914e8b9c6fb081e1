"""What mixers of several heads have in common: queries, keys and values of the input, and an output projection."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from costmodel.carries.pattern import Pattern
from costmodel.carries.selection import Selection
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Mixer, Site, Sizes, Weights
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class Headed(Mixer):
    """H heads of queries, and as many, or H_kv, of keys and values, all of width d."""

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, d, (heads, groups) = m["D"], m["d"], self.query_heads(m)
        return {"w_q": (D, heads, d), "w_k": (D, groups, d), "w_v": (D, groups, d), "w_o": (heads, d, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_q", "w_k", "w_v"

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bhle,hed->bld", mixed, w["w_o"])

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m.get("H_kv", m["H"])


class Patterned(Headed):
    """Softmax attention to places that are known in advance."""

    structure: ClassVar[Structure] = Structure.SPARSE
    carry: ClassVar[type[Carry[Any]]] = Pattern
    kernels: ClassVar[tuple[str, ...]] = ("fused",)


class Choosing(Headed):
    """Softmax attention to blocks of b tokens that each query chooses, with rotary positions."""

    structure: ClassVar[Structure] = Structure.SPARSE
    carry: ClassVar[type[Carry[Any]]] = Selection
    causality: ClassVar[str] = "causal"
    kernels: ClassVar[tuple[str, ...]] = ("fused",)
    grain_first: ClassVar[bool] = True

    def grain(self, m: Sizes) -> int:
        return int(m["b"])

    def rotary(self, m: Sizes) -> Dim:
        return m["d"]


def first_head(at: Site[Any]) -> Dim:
    """The number of this rank's first head among those of all tensor-parallel ranks."""
    return 0 if at.tensor is None else at.tensor.rank * at.sizes["H"]
