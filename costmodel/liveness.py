"""How much memory a program holds, at which point.

Memory is held from the operation that makes it to the last one that uses it, as a reference-counting allocator would;
what the backward rule of an operation reads stays until that rule has ended, as autograd keeps it. Parameters, their
gradients, caches and tables are held throughout and counted elsewhere. Communication that overlaps computation holds
its buffers until that computation ends. Of a branch either side may be taken: the peak is the larger of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from costmodel.dims import Dim, is_number, maximum, minimum
from costmodel.expression import never_above
from costmodel.program import Chain, Fused, Leaf, Loop, Node, Overlap, Program, Seq, When, operations
from costmodel.tensor import Storage, Tensor


@dataclass(frozen=True)
class Memory:
    """Bytes of activations on one rank.

    Attributes:
        saved: held between the forward and the backward pass, inputs included.
        peak: the most at any point of either pass, inputs included.
    """

    saved: Dim
    peak: Dim


@dataclass(frozen=True)
class _Event:
    """A point of a program: the memory it touches.

    Attributes:
        there: 1, or 0 for the inner steps of a ring that has none, such as one of two ranks.
    """

    touched: Sequence[Storage]
    there: Dim = 1


def memory(program: Program) -> Memory:
    """Saved and peak bytes of a program's activations."""
    points = _profile(program, take=True)
    if _branches(program.whole):
        for there, others in _profile(program, take=False).items():
            points.setdefault(there, []).extend(others)
    return Memory(saved(program), _most(points))


def saved(program: Program) -> Dim:
    """Bytes that are held between the passes: what the backward pass touches of the inputs and of what came before."""
    before, after = (
        dict.fromkeys(storage for event in _events(tree, take=True) for storage in event.touched)
        for tree in (program.forward, program.backward)
    )
    held = {tensor.storage: None for tensor in program.inputs} | before
    return sum((storage.bytes for storage in held if storage in after), 0)


def largest(points: Iterable[Dim]) -> Dim:
    """The maximum over points of a program; symbolic points that another one most exceeds are left out first.

    Sizes of memory are sums of products of dimensions, none of which is negative.
    """
    kept: list[Dim] = []
    for point in points:
        if not any(never_above(point, other) for other in kept):
            kept = [other for other in kept if not never_above(other, point)]
            kept.append(point)
    result = kept[0]
    for point in kept[1:]:
        result = maximum(result, point)
    return result


def _profile(program: Program, take: bool) -> dict[Dim, list[Dim]]:
    """Bytes held at every point, by whether it is there; with one side of each branch."""
    events = [*_events(program.forward, take), *_events(program.backward, take)]
    last = {storage: number for number, event in enumerate(events) for storage in event.touched}
    last |= {tensor.storage: len(events) for tensor in program.outputs}
    live: dict[Storage, Dim] = {tensor.storage: tensor.storage.bytes for tensor in program.inputs}
    held: Dim = sum(live.values())
    points: dict[Dim, list[Dim]] = {1: []}
    for number, event in enumerate(events):
        for storage in event.touched:
            if storage not in live:
                live[storage] = storage.bytes
                held = held + storage.bytes
        points.setdefault(event.there, []).append(held)
        for storage in event.touched:
            if last[storage] <= number and storage in live:
                held = held - live.pop(storage)
    return points


def _most(points: Mapping[Dim, Sequence[Dim]]) -> Dim:
    """The maximum over points, by whether they are there; those of inner steps that others exceed are left out."""
    most = [largest(points[1])]
    for there, held in points.items():
        above = [point for point in held if not never_above(point, most[0])]
        if above and not is_number(there, 1):
            most.append(there * largest(above))
    return largest(most)


def _branches(node: Node) -> bool:
    match node:
        case When():
            return True
        case Seq(nodes):
            return any(_branches(child) for child in nodes)
        case Overlap(_, computation):
            return _branches(computation)
        case Loop(_, body):
            return _branches(body)
        case _:
            return False


def _events(node: Node, take: bool) -> Iterator[_Event]:
    """The operations in order, with one side of each branch."""
    match node:
        case Leaf() | Fused():
            yield _Event(_activations((*node.inputs, *node.outputs)))
        case Seq(nodes, held):
            for child in nodes:
                yield from _events(child, take)
            if held:
                yield _Event(_activations(held))
        case Overlap(communication, computation):
            yield from _events(communication, take)
            yield from _events(computation, take)
            sent = [tensor for operation, _ in operations(communication) for tensor in operation.inputs]
            yield _Event(_activations(sent))
        case Loop(step, body):
            there = minimum(step.count, 1)
            yield from (replace(event, there=event.there * there) for event in _events(body, take))
        case Chain(message=message, body=body):
            yield _Event(_activations(message.outputs))
            yield from _events(body, take)
            yield _Event(_activations(message.inputs))
        case When():
            yield from _branch(node, take)


def _branch(node: When, take: bool) -> Iterator[_Event]:
    """One side of a branch; what the other side hands on is the same memory as what the first does."""
    if take:
        yield from _events(node.then, take)
        return
    same = {b.storage: a.storage for a, b in node.results}
    for event in _events(node.otherwise, take):
        yield replace(event, touched=[same.get(storage, storage) for storage in event.touched])


def _activations(tensors: Iterable[Tensor]) -> list[Storage]:
    return list(dict.fromkeys(t.storage for t in tensors if t.storage.kind == "activation"))
