"""A state passed along a line of ranks, each of which works on it before passing it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.dims import Dim, doublings, minimum
from costmodel.ops.communication import Communication
from costmodel.ops.primitive import Spec
from costmodel.tensor import Tensor


@dataclass(frozen=True)
class PassOn(Communication):
    """Tensors handed to the next rank of a line, or to the one before; the last has nobody to hand them to.

    It belongs to a ``Chain``, which knows that ranks wait for each other; bytes and messages here are of one hand-over.
    """

    reverse: bool = False

    @property
    def position(self) -> Dim:
        """How many ranks are before this one."""
        return self.axis.size - 1 - self.axis.rank if self.reverse else self.axis.rank

    @property
    def sends(self) -> Dim:
        """1 unless this is the last rank of the line."""
        return minimum(self.axis.size - 1 - self.position, 1)

    @property
    def works(self) -> Dim:
        """How often this rank works on what it gets."""
        return 1

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return tuple(Spec(t.shape, t.width) for t in inputs)

    def wire_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        return sum(t.bytes for t in inputs)

    def steps(self, inputs: Sequence[Tensor]) -> Dim:
        return 1

    def messages(self, inputs: Sequence[Tensor]) -> Dim:
        return len(inputs)


class Double(PassOn):
    """Tensors handed on 1, 2, 4, ... ranks, as far as there are ranks; each hand-over is worked on where it arrives."""

    @property
    def works(self) -> Dim:
        return doublings(self.position + 1)

    @property
    def sends(self) -> Dim:
        return doublings(self.axis.size - self.position)
