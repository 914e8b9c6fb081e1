"""Communication along one axis of the device mesh.

Bytes are those that one rank sends; every collective here is symmetric, so it receives as many. Collectives are ring
algorithms (Thakur et al. 2005; NCCL's): what the executor runs, byte for byte.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, divide
from costmodel.ops.layout import replace
from costmodel.ops.mesh import Axis
from costmodel.ops.primitive import Primitive, Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


@dataclass(frozen=True)
class Communication(Primitive):
    """An operation whose cost is on the wire."""

    axis: Axis

    family = "communication"

    @abstractmethod
    def wire_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        """Bytes that one rank sends."""

    def busy_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        """Bytes for which the link is busy; those sent, unless ranks differ and wait for each other."""
        return self.wire_bytes(inputs)

    def own_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        """Bytes of the result that are the rank's own, and that it copies or adds to without the wire."""
        return 0

    def switched_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        """Bytes that a rank sends where the switch does the sums; 0 for what is no sum."""
        return 0

    @abstractmethod
    def steps(self, inputs: Sequence[Tensor]) -> Dim:
        """Rounds that follow each other, each paying the link's latency."""

    def messages(self, inputs: Sequence[Tensor]) -> Dim:
        """Messages that one rank sends; one a round unless a rule says otherwise."""
        return self.steps(inputs)


@dataclass(frozen=True)
class RingShift(Communication):
    """Tensors passed to the next rank of the ring, and as many received from the one before."""

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return tuple(Spec(t.shape, t.width) for t in inputs)

    def wire_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        return sum(t.bytes for t in inputs)

    def steps(self, inputs: Sequence[Tensor]) -> Dim:
        return 1

    def messages(self, inputs: Sequence[Tensor]) -> Dim:
        return len(inputs)


@dataclass(frozen=True)
class AllGather(Communication):
    """Every rank's shard, laid end to end along a dimension.

    ``order`` says how the dimension is spread: ``"rank"``, one piece a rank; ``"zigzag"``, rank r holds pieces r and
    2 P - 1 - r of 2 P; ``"striped"``, entries r, r + P, r + 2 P, .... Pieces arrive where they belong, so no order
    costs a copy.
    """

    dim: int
    order: str = "rank"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x = inputs[0]
        return (Spec(replace(x.shape, self.dim, x.shape[self.dim] * self.axis.size), x.width),)

    def wire_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        return (self.axis.size - 1) * inputs[0].bytes

    def own_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        return inputs[0].bytes

    def steps(self, inputs: Sequence[Tensor]) -> Dim:
        return self.axis.size - 1

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return (ops.reduce_scatter(gradients[0], self.axis, self.dim, self.order),)


@dataclass(frozen=True)
class ReduceScatter(Communication):
    """The sum over ranks, of which each keeps its own shard of a dimension, spread as for ``AllGather``."""

    dim: int
    order: str = "rank"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x = inputs[0]
        return (Spec(replace(x.shape, self.dim, divide(x.shape[self.dim], self.axis.size)), x.width),)

    def wire_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        return (self.axis.size - 1) * inputs[0].bytes / self.axis.size

    def own_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        return inputs[0].bytes / self.axis.size

    def steps(self, inputs: Sequence[Tensor]) -> Dim:
        return self.axis.size - 1

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return (ops.all_gather(gradients[0], self.axis, self.dim, self.order),)


@dataclass(frozen=True)
class AllReduce(Communication):
    """The sum over ranks, whole on every rank: a reduce-scatter and an all-gather of the flattened tensor."""

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(inputs[0].shape, inputs[0].width),)

    def wire_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        return 2 * (self.axis.size - 1) * inputs[0].bytes / self.axis.size

    def own_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        return inputs[0].bytes / self.axis.size

    def switched_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        return inputs[0].bytes

    def steps(self, inputs: Sequence[Tensor]) -> Dim:
        return 2 * (self.axis.size - 1)

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        # Every rank goes on with the sum in its own way, and its part is in all of them.
        return (ops.all_reduce(gradients[0], self.axis),)


@dataclass(frozen=True)
class AllToAll(Communication):
    """Dimension ``split`` is cut over the ranks, and ``concat`` is put together from them (a distributed transpose).

    ``order`` says how ``split`` is cut, as for ``AllGather``; what comes back is one piece a rank.
    """

    split: int
    concat: int
    order: str = "rank"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x, p = inputs[0], self.axis.size
        cut = replace(x.shape, self.split, divide(x.shape[self.split], p))
        return (Spec(replace(cut, self.concat, cut[self.concat] * p), x.width),)

    def wire_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        return (self.axis.size - 1) * inputs[0].bytes / self.axis.size

    def own_bytes(self, inputs: Sequence[Tensor]) -> Dim:
        return inputs[0].bytes / self.axis.size

    def steps(self, inputs: Sequence[Tensor]) -> Dim:
        return self.axis.size - 1

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        if self.order != "rank":
            raise NotImplementedError(f"no derived backward of an all-to-all in {self.order} order")
        return (ops.all_to_all(gradients[0], self.axis, self.concat, self.split),)
