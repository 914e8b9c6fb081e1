"""What RWKV's mixers with a matrix as state have in common: a state [d, d] of each head, and the token before."""

from __future__ import annotations

from typing import Any, ClassVar

from costmodel.carries.state import State
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim
from costmodel.mixer import INPUT, Kept, Mixer, Sizes


class ShiftedMixer(Mixer):
    """A causal mixer that reads tokens mixed with their predecessors; its sizes have H heads of d, and C."""

    structure: ClassVar[Structure] = Structure.SEMISEPARABLE
    carry: ClassVar[type[Carry[Any]]] = State
    kernels: ClassVar[tuple[str, ...]] = ("chunked", "recurrent")
    causality: ClassVar[str] = "causal"
    documents: ClassVar[bool] = True

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (INPUT,)

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return Kept((m["H"], m["d"], m["d"]), "accumulate"), Kept((m["D"],))

    def grain(self, m: Sizes) -> int:
        return int(m["C"])

    def overlap(self, m: Sizes) -> Dim:
        return 1

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H"]
