"""Replicas of the weights: what they exchange, and what of their state they share out (ZeRO)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from costmodel.dims import Dim
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
    """The ranks that hold the same weights: all that differ in data, context or Ulysses index."""

    size: Dim
    widths: Widths

    def gather(self, parameters: Dim) -> Seq:
        """Each rank's part of the weights, to all."""
        part = Tensor.new((parameters / self.size,), self.widths.model, "parameter")
        return self._traced(lambda ops, x, _: ops.all_gather(x, self._axis, 0), part)

    def reduce(self, parameters: Dim) -> Seq:
        """The sum of all gradients, to all."""
        return self._traced(lambda ops, x, _: ops.all_reduce(x, self._axis), self._whole(parameters))

    def scatter(self, parameters: Dim) -> Seq:
        """The sum of all gradients, each rank its part."""
        return self._traced(lambda ops, x, _: ops.reduce_scatter(x, self._axis, 0), self._whole(parameters))

    @property
    def _axis(self) -> Axis:
        return Axis("replicas", self.size, 0)

    def _whole(self, parameters: Dim) -> Tensor:
        return Tensor.new((parameters,), self.widths.model, "gradient")

    def _traced(self, method: object, x: Tensor) -> Seq:
        return trace(Tracer(self.widths, 1), method, [x], {}).forward  # type: ignore[arg-type]
