"""The state handed from rank to rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Affine, State
from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_stretches

T = TypeVar("T")


class StateRelay(Strategy):
    """Each rank waits for the state of the one before, advances it, and hands it on: one message a rank.

    Only the advance is done one rank after the other, not the work on tokens.
    """

    name: ClassVar[str] = "state-relay"
    title: ClassVar[str] = "LASP: states handed from rank to rank"
    source: ClassVar[str] = "Sun et al. 2024, arXiv 2404.02882"
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (State,)
    axes: ClassVar[tuple[str, ...]] = ("context",)

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        return equal_stretches(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: State[T]) -> T:
        prepared = carry.prepare(ops)
        relay = _Relay(axes["context"], carry, carry.summary(ops, prepared))
        state = ops.custom(relay.forward, relay.backward, *relay.does.tensors)
        return carry.outputs(ops, prepared, state)


class _Relay:
    """The hand-over of one state, and that of its gradient the other way."""

    def __init__(self, axis: Axis, carry: State[Any], does: Affine[Any]) -> None:
        self.axis, self.carry, self.does = axis, carry, does

    def forward(self, ops: Vocabulary[T], *does: T) -> tuple[tuple[T, ...], tuple[T, ...]]:
        state = ops.relay(self.axis, self.carry.initial(ops), lambda s: self.carry.advance(ops, self.does.of(does), s))
        return state, (*does, *state)

    def backward(self, ops: Vocabulary[T], saved: tuple[T, ...], *gradients: T) -> tuple[T, ...]:
        """A rank's state counts for its own tokens and, through the state it hands on, for those of later ranks."""
        count = len(self.does.tensors)
        does, state = saved[:count], saved[count:]
        found: list[T] = []

        def advance(*tensors: T) -> tuple[T, ...]:
            return self.carry.advance(ops, self.does.of(tensors[:count]), tensors[count:])

        def body(later: tuple[T, ...]) -> tuple[T, ...]:
            back = ops.pull_back(advance, (*does, *state), later)
            found[:] = back[:count]
            return tuple(ops.add(own, more) for own, more in zip(gradients, back[count:], strict=True))

        ops.relay(self.axis, tuple(ops.zeros_like(g) for g in gradients), body, reverse=True)
        return tuple(found)


state_relay = StateRelay()
