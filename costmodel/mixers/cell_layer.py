"""What layers of recurrent cells have in common: products of the input, the cell, the output projection."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Recurrent
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.cells import Cell, Cells, cell_step

T = TypeVar("T")


def cell_sizes(heads: int, head_dim: int) -> dict[str, Hyperparameter]:
    """The hyperparameters of such a layer."""
    return {
        "heads": Hyperparameter("H", heads, "heads: blocks on the diagonal of the recurrent weights", cut=True),
        "head_dim": Hyperparameter("d", head_dim, "hidden size of a head"),
    }


class CellLayer(Mixer):
    """Gates [H, gates d] of the input and of the hidden state of the token before, in the same head.

    Attributes:
        gates: how many, candidates included; their columns lie one after the other in the weights.
        cell: what a token does.
    """

    structure: ClassVar[Structure] = Structure.RECURRENT
    carry: ClassVar[type[Carry[Any]]] = Recurrent
    kernels: ClassVar[tuple[str, ...]] = ("recurrent",)
    causality: ClassVar[str] = "causal"
    documents: ClassVar[bool] = True
    gates: ClassVar[int]
    cell: ClassVar[Cell]

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d = m["D"], m["H"], m["d"]
        wide = self.gates * d
        return {"w_x": (D, H, wide), **self.cell_weights(m), "w_o": (H, d, D)}

    def cell_weights(self, m: Sizes) -> dict[str, Shape]:
        """Those of the cell, in the order in which it takes them."""
        H, d = m["H"], m["d"]
        wide = self.gates * d
        return {"w_h": (H, d, wide), "b": (H, wide)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return ("w_x",)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        return Cells(self.cell, read[0], self._own(w, at)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        return cell_step(ops, self.cell, read[0], self._own(w, at), at.cache)

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bhle,hed->bld", mixed, w["w_o"])

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return tuple(Kept((m["H"], m["d"]), precision) for precision in self.cell.states)

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        read = xp.einsum("bld,dhe->lbhe", x, w["w_x"])
        state, hidden = None, []
        for token in read:
            state = self.written_step(xp, token, state, w)
            hidden.append(state[-1])
        mixed = self.written_norm(xp, xp.stack(hidden, 2), w)
        return Written(None, None, xp.einsum("bhle,hed->bld", mixed, w["w_o"]))

    @abstractmethod
    def written_step(self, xp: Any, x: Any, state: tuple[Any, ...] | None, w: Weights) -> tuple[Any, ...]:
        """The state [B, H, d] after a token's products x [B, H, gates d], hidden state last; ``None`` before it."""

    def written_norm(self, xp: Any, mixed: Any, w: Weights) -> Any:
        """What is done to hidden states [B, H, n, d] before the projection."""
        return mixed

    def _own(self, w: Weights, at: Site[Any]) -> tuple[Any, ...]:
        return tuple(w[name] for name in self.cell_weights(at.sizes))
