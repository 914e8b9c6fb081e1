"""Replicas of the weights: what they exchange, and what of their state they share out (ZeRO)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from costmodel.dims import Dim, is_number, same
from costmodel.ops.mesh import Axis
from costmodel.program import Seq
from costmodel.tensor import Tensor
from costmodel.trace import Tracer, Widths, trace


class Sharing(Enum):
    """What replicas do not each hold whole (Rajbhandari et al. 2020, arXiv 1910.02054, section 5)."""

    NOTHING = "replicated"
    OPTIMIZER = "zero-1"
    EVERYTHING = "zero-3"


@dataclass(frozen=True)
class Replicas:
    """The ranks that hold the same weights.

    In the methods, ``rows`` are those of the parameters that are cut like the sequence.

    Attributes:
        size: all that differ in data, context or Ulysses index.
        data: all that differ in data index, which hold the same rows of weights that are cut like the sequence.
    """

    size: Dim
    data: Dim
    widths: Widths

    def gather(self, parameters: Dim, rows: Dim) -> Seq:
        """Each rank's part of the weights, to all."""
        return self._traced(lambda ops, x, axis: ops.all_gather(x, axis, 0), parameters, rows, part=True)

    def reduce(self, parameters: Dim, rows: Dim) -> Seq:
        """The sum of all gradients, to all."""
        return self._traced(lambda ops, x, axis: ops.all_reduce(x, axis), parameters, rows)

    def scatter(self, parameters: Dim, rows: Dim) -> Seq:
        """The sum of all gradients, each rank its part."""
        return self._traced(lambda ops, x, axis: ops.reduce_scatter(x, axis, 0), parameters, rows)

    def _traced(
        self, method: Callable[[Tracer, Tensor, Axis], Tensor], parameters: Dim, rows: Dim, part: bool = False
    ) -> Seq:
        """The method for what all replicas have copies of, and for the rows."""
        kind = "parameter" if part else "gradient"
        sent = {} if same(parameters, rows) and not is_number(rows, 0) else {("replicas", self.size): parameters - rows}
        if not is_number(rows, 0):
            sent["data", self.data] = rows
        axes = [Axis(name, size, 0) for name, size in sent]
        shapes = [count / axis.size if part else count for count, axis in zip(sent.values(), axes, strict=True)]
        given = [Tensor.new((shape,), self.widths.model, kind) for shape in shapes]  # type: ignore[arg-type]

        def every(ops: Tracer, *inputs: Any) -> tuple[Tensor, ...]:
            return tuple(method(ops, x, axis) for x, axis in zip(inputs[:-1], axes, strict=True))

        return trace(Tracer(self.widths, 1), every, given, {}).forward
