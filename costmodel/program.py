"""A method traced: a series-parallel tree of operations, and what it costs.

Every number of a ``Program`` is per rank, and has the type of the dimensions it was traced with: expressions, or
numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from costmodel.dims import Dim, Shape, is_number, minimum, same
from costmodel.ops.communication import Communication
from costmodel.ops.primitive import FLOP_CLASSES, Flops, Primitive, Reading
from costmodel.tensor import Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """The step of a ring while its body is traced: it stands for each of ``start`` ... ``stop - 1`` of ``size``."""

    start: Dim
    stop: Dim
    size: Dim

    def __le__(self, rank: Dim) -> Condition:
        return Condition(self, rank)

    @property
    def count(self) -> Dim:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class Condition:
    """``step <= rank``: whether the block at hand comes from an earlier rank (or this one)."""

    step: Step
    rank: Dim

    @property
    def count(self) -> Dim:
        """In how many of the loop's steps it holds."""
        return self._up_to(self.step.stop) - self._up_to(self.step.start)

    def _up_to(self, stop: Dim) -> Dim:
        """How many of the steps 1 ... stop - 1 it holds for; a rank is below the ring's size."""
        return self.rank if same(stop, self.step.size) else minimum(self.rank, stop - 1)


@dataclass(frozen=True, eq=False)
class Leaf:
    """One primitive applied once."""

    primitive: Primitive
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        return type(self.primitive).__name__

    @property
    def family(self) -> str:
        return self.primitive.family

    @property
    def kernel(self) -> tuple[str, str]:
        """The family and the kernel within it."""
        return self.family, self.primitive.kernel

    @cached_property
    def signature(self) -> Hashable:
        """Equal for operations that cost the same: what is done, on which shapes."""
        return self.primitive, _shapes(self.inputs), _shapes(self.outputs)

    def flops(self, reading: Reading) -> Flops:
        return self.primitive.flops(self.inputs, self.outputs, reading)

    def traffic(self) -> tuple[Dim, Dim]:
        return self.primitive.traffic(self.inputs, self.outputs)


@dataclass(frozen=True, eq=False)
class Fused:
    """Several primitives as one kernel: their FLOPs, but only the traffic of what goes in and comes out.

    Attributes:
        repeat: how often the kernel goes through its body (the steps of a scan).
        apart: whether the device runs its parts as kernels of their own after all.
    """

    name: str
    body: Seq
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    family: str = "elementwise"
    repeat: Dim = 1
    apart: bool = False

    @property
    def kernel(self) -> tuple[str, str]:
        """The family and the kernel within it."""
        return self.family, self.name.replace(" ", "_")

    @cached_property
    def signature(self) -> Hashable:
        """As for ``Leaf``."""
        body = tuple((operation.signature, times) for operation, times in operations(self.body))
        return self.kernel, self.repeat, body, _shapes(self.inputs), _shapes(self.outputs)

    def flops(self, reading: Reading) -> Flops:
        return {kind: flops * self.repeat for kind, flops in total_flops(self.body, reading).items()}

    def traffic(self) -> tuple[Dim, Dim]:
        return sum(t.bytes for t in self.inputs), sum(t.bytes for t in self.outputs)


@dataclass(frozen=True, eq=False)
class Seq:
    """Nodes one after the other; ``held`` are tensors that stay in memory until the last of them has ended."""

    nodes: list[Node] = field(default_factory=list)
    held: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Overlap:
    """Communication beside computation that does not wait for it."""

    communication: Seq
    computation: Seq


@dataclass(frozen=True, eq=False)
class Loop:
    """A body once for each step."""

    step: Step
    body: Overlap


@dataclass(frozen=True, eq=False)
class When:
    """One of two branches, by a comparison of the loop's step with the rank.

    ``results`` pairs the tensors that either branch hands on; the first of each pair stands for both.
    """

    condition: Condition
    then: Seq
    otherwise: Seq
    results: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, eq=False)
class Chain:
    """Work on what comes from a rank before and goes to one after: ranks wait for each other.

    Attributes:
        rounds: hand-overs, each with the work on it, that follow each other before the last rank has what it needs.
        after: works of its own that it does then.
        works: how often this rank does the work.
        sends: how often it hands on.
        message: the hand-over.
        body: the work between getting something and passing it on.
    """

    rounds: Dim
    after: Dim
    works: Dim
    sends: Dim
    message: Leaf
    body: Seq


Node = Leaf | Fused | Seq | Overlap | Loop | When | Chain
Operation = Leaf | Fused


def _shapes(tensors: Sequence[Tensor]) -> tuple[tuple[Shape, Dim], ...]:
    return tuple((tensor.shape, tensor.width) for tensor in tensors)


def operations(node: Node, times: Dim = 1) -> Iterator[tuple[Operation, Dim]]:
    """Every operation of a tree and how often it runs."""
    match node:
        case Fused(body=body, repeat=repeat, apart=True):
            yield from operations(body, times * repeat)
        case Leaf() | Fused():
            yield node, times
        case Seq(nodes):
            for child in nodes:
                yield from operations(child, times)
        case Overlap(communication, computation):
            yield from operations(communication, times)
            yield from operations(computation, times)
        case Loop(step, body):
            yield from _looped(body, times * step.count, times)
        case Chain(_, _, works, sends, message, body):
            yield from operations(body, times * works)
            yield message, times * sends
        case When():
            raise ValueError("a branch outside the loop whose step it compares")


def _looped(node: Node, times: Dim, outer: Dim) -> Iterator[tuple[Operation, Dim]]:
    """As ``operations``, inside a loop: ``times`` counts its steps, ``outer`` the runs of the whole loop."""
    match node:
        case When(condition, then, otherwise, _):
            yield from operations(then, outer * condition.count)
            yield from operations(otherwise, times - outer * condition.count)
        case Seq(nodes):
            for child in nodes:
                yield from _looped(child, times, outer)
        case Overlap(communication, computation):
            yield from operations(communication, times)
            yield from _looped(computation, times, outer)
        case _:
            yield from operations(node, times)


def total_flops(node: Node, reading: Reading) -> dict[str, Dim]:
    """FLOP by class over a tree; classes that do not occur are left out."""
    total: dict[str, Dim] = {}
    for operation, times in operations(node):
        for kind, flops in operation.flops(reading).items():
            total[kind] = total.get(kind, 0) + times * flops
    return {kind: total[kind] for kind in FLOP_CLASSES if kind in total and not is_number(total[kind], 0)}


@dataclass(frozen=True)
class Wire:
    """What one rank sends along one axis of the mesh."""

    bytes: Dim = 0
    messages: Dim = 0

    def __add__(self, other: Wire) -> Wire:
        return Wire(self.bytes + other.bytes, self.messages + other.messages)


@dataclass(frozen=True)
class Program:
    """One pass of a method on one rank.

    Attributes:
        forward: what the forward pass does.
        backward: what the backward pass does, recomputation included; empty for inference.
        inputs: activations handed in, which the caller holds.
        outputs: activations handed back.
    """

    forward: Seq
    backward: Seq
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def whole(self) -> Seq:
        return Seq([self.forward, self.backward])

    def flops(self, reading: Reading = Reading.EXECUTED) -> dict[str, Dim]:
        """FLOP by class, forward and backward together."""
        return total_flops(self.whole, reading)

    def traffic(self) -> tuple[Dim, Dim]:
        """Bytes read from and written to device memory by kernels; communication is not in it."""
        read: Dim = 0
        written: Dim = 0
        for operation, times in operations(self.whole):
            if operation.family != "communication":
                r, w = operation.traffic()
                read, written = read + times * r, written + times * w
        return read, written

    def wire(self) -> dict[str, Wire]:
        """What a rank sends, by axis of the mesh."""
        total: dict[str, Wire] = {}
        for operation, times in operations(self.whole):
            if isinstance(operation, Leaf) and isinstance(operation.primitive, Communication):
                leaf, axis = operation.primitive, operation.primitive.axis.name
                sent = Wire(times * leaf.wire_bytes(operation.inputs), times * leaf.messages(operation.inputs))
                total[axis] = total.get(axis, Wire()) + sent
        return total

    def kernels(self) -> Mapping[str, Dim]:
        """Kernels launched, by family; views and communication left out."""
        count: dict[str, Dim] = {}
        for operation, times in operations(self.whole):
            if operation.family not in ("view", "communication"):
                count[operation.family] = count.get(operation.family, 0) + times
        return count
