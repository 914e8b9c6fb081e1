"""sLSTM: the scalar memory of xLSTM, with recurrent weights in blocks and exponential gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.composite import rms_norm
from costmodel.dims import Shape
from costmodel.mixer import Hyperparameter, Site, Sizes, Weights
from costmodel.mixers.cell_layer import CellLayer, cell_sizes
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.cells import Cell, gates, preactivation
from costmodel.written import gated_normed

T = TypeVar("T")


def _advance(ops: Vocabulary[Any], state: Any, x: Any, weights: Any) -> Any:
    cell, count, largest, hidden = state
    i, f, z, o = gates(ops, preactivation(ops, x, hidden, *weights), 4)
    kept = ops.add(largest, ops.map("log_sigmoid", f))
    largest = ops.map("maximum", kept, i)
    forget, enter = (ops.map("exp", ops.map("sub", gate, largest)) for gate in (kept, i))
    cell = ops.add(ops.mul(cell, forget), ops.mul(enter, ops.map("tanh", z)))
    count = ops.add(ops.mul(count, forget), enter)
    hidden = ops.mul(ops.map("sigmoid", o), ops.map("div", cell, count))
    return cell, count, largest, ops.cast(hidden, "model")


class Slstm(CellLayer):
    """Exponential input gates, sigmoid forget gates, a normaliser, and the running maximum that keeps exp in range.

    The maximum starts at 0, where the state is empty: any start cancels out. Norm of each head by root mean square (the
    code's subtracts the mean too); the block's optional convolution before the gates and its feed-forward are left out.
    """

    name: ClassVar[str] = "slstm"
    title: ClassVar[str] = "sLSTM (xLSTM's scalar memory)"
    template: ClassVar[str] = (
        "no matrix: i, f, z, o = X_t W + h_{t-1} R + b,  c_t = sig(f) c_{t-1} + exp(i) tanh(z),  "
        "n_t = sig(f) n_{t-1} + exp(i),  h_t = sig(o) c_t / n_t"
    )
    source: ClassVar[str] = "Beck et al. 2024, arXiv 2405.04517, equations 8-17; NX-AI/xlstm blocks/slstm"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = cell_sizes(heads=4, head_dim=256)
    gates: ClassVar[int] = 4
    cell: ClassVar[Cell] = Cell("sLSTM", ("accumulate", "accumulate", "accumulate", "model"), _advance)

    def weights(self, m: Sizes) -> dict[str, Shape]:
        return {**super().weights(m), "norm": (m["d"],)}

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        output: T = super().finish(ops, rms_norm(ops, mixed, w["norm"]), w, at)
        return output

    def written_step(self, xp: Any, x: Any, state: tuple[Any, ...] | None, w: Weights) -> tuple[Any, ...]:
        zeros = xp.zeros_like(x[..., : w["w_h"].shape[1]])
        c, n, h = state or (zeros, zeros, zeros)
        i, f, z, o = (x + xp.einsum("bhd,hde->bhe", h, w["w_h"]) + w["b"]).chunk(4, -1)
        forget = 1 / (1 + xp.exp(-f))
        c, n = forget * c + xp.exp(i) * xp.tanh(z), forget * n + xp.exp(i)
        return c, n, c / n / (1 + xp.exp(-o))

    def written_norm(self, xp: Any, mixed: Any, w: Weights) -> Any:
        return gated_normed(mixed, 1.0, w["norm"])


slstm = Slstm()
