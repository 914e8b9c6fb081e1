"""The state handed from rank to rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Affine, Summed
from costmodel.carry import Carry
from costmodel.dims import divide
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, divides, equal_stretches

T = TypeVar("T")


class StateRelay(Strategy):
    """Each rank waits for the state of the one before, advances it, and hands it on: one message a rank.

    Only the advance is done one rank after the other, not the work on tokens.
    """

    name: ClassVar[str] = "state-relay"
    title: ClassVar[str] = "LASP: states handed from rank to rank"
    source: ClassVar[str] = "Sun et al. 2024, arXiv 2404.02882"
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Summed,)
    axes: ClassVar[tuple[str, ...]] = ("context",)
    documents: ClassVar[bool] = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield from equal_stretches(at)
        reason = f"{{heads}} heads over {{tensor}} ranks are not {self.groups} equal groups"
        yield divides(at.heads, at.tensor * self.groups, reason)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Summed[T]) -> T:
        carry = carry.on_line(ops, axes["context"])
        prepared = carry.prepare(ops)
        relay = _Relay(axes["context"], carry, carry.summary(ops, prepared), self.groups)
        state = ops.custom(relay.forward, relay.backward, *relay.does.tensors)
        return carry.outputs(ops, prepared, state)


class StatePipeline(StateRelay):
    """The state goes in groups of heads, which are independent: a rank passes one on while the next comes.

    The paper cuts the key dimension of the state instead, to the same effect.
    """

    name: ClassVar[str] = "state-pipeline"
    title: ClassVar[str] = "ZeCO: states handed from rank to rank in pieces"
    source: ClassVar[str] = "Chou et al. 2025, arXiv 2507.01004"
    groups: ClassVar[int] = 4


class _Relay:
    """The hand-over of one state, and that of its gradient the other way, in groups of heads."""

    def __init__(self, axis: Axis, carry: Summed[Any], does: Affine[Any], groups: int) -> None:
        self.axis, self.carry, self.does, self.groups = axis, carry, does, groups

    def forward(self, ops: Vocabulary[T], *does: T) -> tuple[tuple[T, ...], tuple[T, ...]]:
        def one(piece: int) -> tuple[T, ...]:
            start, own = self._group(ops, self.carry.initial(ops), piece), self._group(ops, does, piece)
            advance = partial(self.carry.advance, ops, self.does.of(own))
            return ops.relay(self.axis, start, advance, behind=piece > 0)

        state = self._joined(ops, [one(piece) for piece in range(self.groups)])
        return state, (*does, *state)

    def backward(self, ops: Vocabulary[T], saved: tuple[T, ...], *gradients: T) -> tuple[T, ...]:
        """A rank's state counts for its own tokens and, through the state it hands on, for those of later ranks."""
        count = len(self.does.tensors)

        def advance(*tensors: T) -> tuple[T, ...]:
            return self.carry.advance(ops, self.does.of(tensors[:count]), tensors[count:])

        def one(piece: int) -> tuple[T, ...]:
            before, own = self._group(ops, saved, piece), self._group(ops, gradients, piece)
            found: list[T] = []

            def body(later: tuple[T, ...]) -> tuple[T, ...]:
                back = ops.pull_back(advance, before, later)
                found[:] = back[:count]
                return tuple(ops.add(g, more) for g, more in zip(own, back[count:], strict=True))

            ops.relay(self.axis, tuple(ops.zeros_like(g) for g in own), body, reverse=True, behind=piece > 0)
            return tuple(found)

        return self._joined(ops, [one(piece) for piece in range(self.groups)])

    def _group(self, ops: Vocabulary[T], tensors: tuple[T, ...], piece: int) -> tuple[T, ...]:
        """The heads [B, H, ...] of one piece."""
        if self.groups == 1:
            return tensors
        sizes = [divide(ops.shape(x)[1], self.groups) for x in tensors]
        return tuple(ops.slice(x, 1, piece * size, size) for x, size in zip(tensors, sizes, strict=True))

    def _joined(self, ops: Vocabulary[T], groups: list[tuple[T, ...]]) -> tuple[T, ...]:
        if self.groups == 1:
            return groups[0]
        return tuple(ops.concat(parts, 1) for parts in zip(*groups, strict=True))


state_relay = StateRelay()
state_pipeline = StatePipeline()
