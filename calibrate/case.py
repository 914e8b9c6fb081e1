"""One kind of measured run, written over the op vocabulary: a fit reads its formulas, and a timer runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from costmodel.dims import Dim
from costmodel.ops.selection import INDEX_WIDTH
from costmodel.tensor import Tensor
from costmodel.trace import Widths

Sizes = Mapping[str, int]
Run = Callable[..., Any]


@dataclass(frozen=True)
class Operand:
    """A tensor that a run is given.

    Attributes:
        precision: ``"model"``, ``"accumulate"``, or ``"index"`` for indices.
        below: indices are less than this.
    """

    shape: tuple[int, ...]
    precision: str = "model"
    below: int = 0


#: Operands given the sizes; a shape alone is a tensor at model precision.
Shapes = Callable[[Sizes], tuple[tuple[int, ...] | Operand, ...]]


@dataclass(frozen=True)
class Case:
    """One kind of run.

    Attributes:
        family: the kernel family of a profile whose numbers it informs, or ``"link"``.
        sizes: names of its sizes.
        inputs: its operands, given the sizes.
        run: what it does, given a reader of the vocabulary, the sizes and its operands.
        train: whether the backward pass is timed with the forward pass.
    """

    family: str
    sizes: tuple[str, ...]
    inputs: Shapes
    run: Run
    train: bool = False

    @property
    def tiled(self) -> bool:
        """Whether a fused attention kernel works in tiles of queries."""
        return "n_q" in self.sizes

    def operands(self, sizes: Sizes) -> tuple[Operand, ...]:
        """What it is given."""
        return tuple(x if isinstance(x, Operand) else Operand(x) for x in self.inputs(sizes))

    def traced(self, sizes: Sizes, widths: Widths) -> list[Tensor]:
        """The same as tensors that are only shapes."""
        bytes_of: dict[str, Dim] = {"model": widths.model, "accumulate": widths.accumulate, "index": INDEX_WIDTH}
        return [Tensor.new(operand.shape, bytes_of[operand.precision]) for operand in self.operands(sizes)]
