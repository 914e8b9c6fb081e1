"""What mixers with a gated state have in common: a state [d, e] of each head, read and written in chunks."""

from __future__ import annotations

from typing import Any, ClassVar

from costmodel.carries.state import State
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim
from costmodel.mixer import Kept, Mixer, Sizes
from costmodel.recurrences.gated import KERNELS


class GatedMixer(Mixer):
    """A causal mixer whose carry is ``Gated``; its sizes have H heads of d and e, and chunks of C tokens."""

    structure: ClassVar[Structure] = Structure.SEMISEPARABLE
    carry: ClassVar[type[Carry[Any]]] = State
    kernels: ClassVar[tuple[str, ...]] = KERNELS
    causality: ClassVar[str] = "causal"
    documents: ClassVar[bool] = True

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((m["H"], m["d"], m["e"]), "accumulate"),)

    def grain(self, m: Sizes) -> int:
        return int(m["C"])

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H"]
