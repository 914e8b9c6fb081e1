"""LSTM: the long short-term memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from costmodel.mixer import Hyperparameter, Weights
from costmodel.mixers.cell_layer import CellLayer, cell_sizes
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.cells import Cell, gates, preactivation


def _advance(ops: Vocabulary[Any], state: Any, x: Any, weights: Any) -> Any:
    cell, hidden = state
    i, f, g, o = gates(ops, preactivation(ops, x, hidden, *weights), 4)
    kept = ops.mul(cell, ops.map("sigmoid", f))
    cell = ops.add(kept, ops.mul(ops.map("sigmoid", i), ops.map("tanh", g)))
    return cell, ops.cast(ops.mul(ops.map("sigmoid", o), ops.map("tanh", cell)), "model")


class Lstm(CellLayer):
    """One head is torch.nn.LSTM, whose two biases are one here; an output projection follows, as in all mixers."""

    name: ClassVar[str] = "lstm"
    title: ClassVar[str] = "LSTM"
    template: ClassVar[str] = (
        "no matrix: i, f, g, o = X_t W + h_{t-1} R + b,  c_t = sig(f) c_{t-1} + sig(i) tanh(g),  h_t = sig(o) tanh(c_t)"
    )
    source: ClassVar[str] = (
        "Hochreiter & Schmidhuber 1997, doi 10.1162/neco.1997.9.8.1735; forget gate: Gers et al. 2000, "
        "doi 10.1162/089976600300015015; torch.nn.LSTM"
    )
    sizes: ClassVar[Mapping[str, Hyperparameter]] = cell_sizes(heads=1, head_dim=1024)
    gates: ClassVar[int] = 4
    cell: ClassVar[Cell] = Cell("LSTM", ("accumulate", "model"), _advance)

    def written_step(self, xp: Any, x: Any, state: tuple[Any, ...] | None, w: Weights) -> tuple[Any, ...]:
        zeros = xp.zeros_like(x[..., : w["w_h"].shape[1]])
        c, h = state or (zeros, zeros)
        i, f, g, o = (x + xp.einsum("bhd,hde->bhe", h, w["w_h"]) + w["b"]).chunk(4, -1)
        c = c / (1 + xp.exp(-f)) + xp.tanh(g) / (1 + xp.exp(-i))
        return c, xp.tanh(c) / (1 + xp.exp(-o))


lstm = Lstm()
