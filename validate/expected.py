"""What the formulas say that every rank of a run does: the numbers that a real run is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from costmodel.arrangement import AXES, Way
from costmodel.candidates import padded_length
from costmodel.dims import Dim
from costmodel.expression import Expression
from costmodel.liveness import Memory, memory, saved
from costmodel.ops.communication import AllReduce
from costmodel.ops.primitive import Reading
from costmodel.piece import Pieces
from costmodel.program import Leaf, Program, operations
from costmodel.subject import Layer, Subject
from costmodel.trace import Tracer, Widths
from costmodel.workload import Workload
from validate.communication import Traffic
from validate.mesh import Mesh


@dataclass(frozen=True)
class Expected:
    """A layer run in one way on one mesh, as the planner traces it, evaluated exactly at each rank.

    Attributes:
        gradient: of gradients on the wire, that of accumulation if not given.
    """

    layer: Layer
    way: Way
    workload: Workload
    mesh: Mapping[str, int]
    dtype: torch.dtype
    context_inside: bool = False
    gradient: torch.dtype | None = None

    @cached_property
    def program(self) -> Program:
        """Formulas of the batch, the length, the mesh and the rank."""
        model, accumulate = self.dtype.itemsize, max(4, self.dtype.itemsize)
        gradient = accumulate if self.gradient is None else self.gradient.itemsize
        ops = Tracer(Widths(model, accumulate, gradient), tile=1)
        subject = Subject("one layer", self.layer.sizes["D"], (self.layer,))
        pieces = Pieces(subject, self.workload, self.way.strategy.axes, self.way.tensor, ops)
        return pieces.layer(self.layer, self.way).program

    @cached_property
    def length(self) -> int:
        """Tokens of the sequence, with those that it is padded with."""
        return padded_length(self.layer, self.way, self.workload, self.mesh)

    @cached_property
    def memory(self) -> Memory:
        """Formulas of the bytes held."""
        return memory(self.program)

    @property
    def saved(self) -> Dim:
        """The formula of what is held between the passes; that of the peak takes much longer to find."""
        return saved(self.program)

    def value(self, formula: Dim, rank: int) -> Dim:
        """A formula's exact value at a rank."""
        if not isinstance(formula, Expression):
            return formula
        axes = Mesh.of(self.mesh, rank, self.context_inside).axes
        values = {"B": self.workload.batch, "L": self.length, "T": self.workload.cached}
        for name, size in AXES.items():
            values[size] = axes[name].size if name in axes else 1
            values[f"rank_{size[-1]}"] = axes[name].rank if name in axes else 0
        return formula.evaluate(values)

    def sent(self, rank: int) -> dict[str, Traffic]:
        """What a rank sends along each axis of the program, with what all-reduces fill up."""
        found = {}
        for axis, wire in self.program.wire().items():
            sent = self.value(wire.bytes, rank) + self._filled(axis, rank)
            found[axis] = Traffic(_whole(sent), _whole(self.value(wire.messages, rank)))
        return found

    def peak(self, rank: int) -> int:
        """The most bytes of activations that a rank holds at once, its input included."""
        return _whole(self.value(self.memory.peak, rank))

    def gradients(self, rank: int) -> int:
        """Bytes of the gradients of a rank's weights."""
        made = (x.storage for operation, _ in operations(self.program.backward) for x in operation.outputs)
        found = dict.fromkeys(storage for storage in made if storage.kind == "gradient")
        return _whole(self.value(sum((storage.bytes for storage in found), 0), rank))

    def flops(self) -> float:
        """FLOP of all classes on the last rank, without masks."""
        last = math.prod(self.mesh.values()) - 1
        return sum(float(self.value(flops, last)) for flops in self.program.flops(Reading.DENSE).values())

    def _filled(self, axis: str, rank: int) -> Dim:
        """Bytes that all-reduces send besides: elements are filled up until the ranks divide them."""
        extra: Dim = 0
        for operation, times in operations(self.program.whole):
            found = operation.primitive if isinstance(operation, Leaf) else None
            if isinstance(found, AllReduce) and found.axis.name == axis:
                ranks, x = self.mesh[axis], operation.inputs[0]
                missing = -self.value(x.elements, rank) % ranks
                extra += self.value(times, rank) * 2 * (ranks - 1) * missing * x.width / ranks
        return extra


def _whole(value: Dim) -> int:
    """A count, which is whole wherever the strategy applies."""
    if value != int(value):
        raise ValueError(f"a count of {value} is not whole: the sizes do not divide")
    return int(value)
