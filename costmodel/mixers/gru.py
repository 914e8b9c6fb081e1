"""GRU: the gated recurrent unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from costmodel.dims import Shape
from costmodel.mixer import Hyperparameter, Sizes, Weights
from costmodel.mixers.cell_layer import CellLayer, cell_sizes
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.cells import Cell, gates


def _advance(ops: Vocabulary[Any], state: Any, x: Any, weights: Any) -> Any:
    (hidden,), (weight, bias, inner_bias) = state, weights
    own = gates(ops, ops.add(ops.cast(x, "accumulate"), bias), 3)
    back = gates(ops, ops.contract("bhd,hde->bhe", hidden, weight), 3)
    r, z = (ops.map("sigmoid", ops.add(a, b)) for a, b in zip(own[:2], back[:2], strict=True))
    new = ops.map("tanh", ops.add(own[2], ops.mul(r, ops.add(back[2], inner_bias))))
    return (ops.cast(ops.add(new, ops.mul(z, ops.map("sub", hidden, new))), "model"),)


class Gru(CellLayer):
    """One head is torch.nn.GRU: the reset gate is applied after the product with the hidden state."""

    name: ClassVar[str] = "gru"
    title: ClassVar[str] = "GRU"
    template: ClassVar[str] = (
        "no matrix: r, z = sig(X_t W + h_{t-1} R + b),  g = tanh(X_t W_n + b_n + r (h_{t-1} R_n + c_n)),  "
        "h_t = (1 - z) g + z h_{t-1}"
    )
    source: ClassVar[str] = "Cho et al. 2014, arXiv 1406.1078; torch.nn.GRU"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = cell_sizes(heads=1, head_dim=1024)
    gates: ClassVar[int] = 3
    cell: ClassVar[Cell] = Cell("GRU", ("model",), _advance)

    def cell_weights(self, m: Sizes) -> dict[str, Shape]:
        return {**super().cell_weights(m), "b_n": (m["H"], m["d"])}

    def written_step(self, xp: Any, x: Any, state: tuple[Any, ...] | None, w: Weights) -> tuple[Any, ...]:
        (h,) = state or (xp.zeros_like(x[..., : w["w_h"].shape[1]]),)
        own, back = (x + w["b"]).chunk(3, -1), xp.einsum("bhd,hde->bhe", h, w["w_h"]).chunk(3, -1)
        r, z = (1 / (1 + xp.exp(-a - b)) for a, b in zip(own[:2], back[:2], strict=True))
        new = xp.tanh(own[2] + r * (back[2] + w["b_n"]))
        return ((1 - z) * new + z * h,)


gru = Gru()
