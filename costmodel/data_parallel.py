"""Replicas of the weights: what they exchange, and what of their state they share out (ZeRO)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from costmodel.dims import Dim
from costmodel.expression import Expression, symbol_named
from costmodel.ops.mesh import Axis
from costmodel.program import Seq
from costmodel.tensor import Tensor
from costmodel.timing import Times, times
from costmodel.trace import Tracer, Widths, trace


class Sharing(Enum):
    """What replicas do not each hold whole (Rajbhandari et al. 2020, arXiv 1910.02054, section 5)."""

    NOTHING = "replicated"
    OPTIMIZER = "zero-1"
    EVERYTHING = "zero-3"

    @property
    def chosen(self) -> Expression:
        """A symbol that is 1 for plans that share out just this, and 0 for others."""
        return symbol_named(f"chosen:{self.value}")


@dataclass(frozen=True)
class Replicas:
    """The ranks that hold the same weights: all that differ in data, context or Ulysses index.

    What is shared out is a choice of the plan, so it is in the formulas as a symbol.
    """

    size: Dim
    widths: Widths

    def part(self, *shared_by: Sharing) -> Dim:
        """The part of a state that each rank holds, where these kinds of sharing share it out."""
        some = sum((sharing.chosen for sharing in shared_by), 0)
        return 1 - some + some / self.size

    def fetch(self, parameters: Dim) -> Times:
        """Gathering the weights of a layer before a pass through it."""
        return times(self.gather(parameters)) * Sharing.EVERYTHING.chosen

    def exchange(self, parameters: Dim) -> Times:
        """Summing the gradients of a layer: whole on each rank, or each its part."""
        whole = Sharing.NOTHING.chosen
        return times(self.reduce(parameters)) * whole + times(self.scatter(parameters)) * (1 - whole)

    def publish(self, parameters: Dim) -> Times:
        """Gathering the weights of a layer after each rank has updated its part."""
        return times(self.gather(parameters)) * Sharing.OPTIMIZER.chosen

    def moves(self, parameters: Dim) -> list[tuple[Seq, Dim]]:
        """All that is sent for a layer in one training step, and how often."""
        whole, shared = Sharing.NOTHING.chosen, Sharing.EVERYTHING.chosen
        gathers = 2 * shared + Sharing.OPTIMIZER.chosen
        return [
            (self.gather(parameters), gathers),
            (self.reduce(parameters), whole),
            (self.scatter(parameters), 1 - whole),
        ]

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
