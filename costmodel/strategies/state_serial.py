"""Ranks one after the other: each works on its tokens when it has the state of the rank before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Recurrent
from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_stretches

T = TypeVar("T")


class StateSerial(Strategy):
    """A nonlinear recurrence cannot be cut in time, so ranks wait for each other; memory is spread all the same.

    One message a rank. The last rank ends after the work of all; what needs no state (projections, feed-forward) is
    done at the same time. A rank keeps the state it starts from and its tokens, and goes through them again on the way
    back.
    """

    name: ClassVar[str] = "state-serial"
    title: ClassVar[str] = "nonlinear recurrence, one rank after the other"
    source: ClassVar[str] = "-"
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Recurrent,)
    axes: ClassVar[tuple[str, ...]] = ("context",)

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        return equal_stretches(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Recurrent[T]) -> T:
        turns = _Turns(axes["context"], carry)
        mixed: T = ops.custom(turns.forward, turns.backward, *carry.streams(), *carry.parameters())
        return mixed


class _Turns:
    """The ranks' turns, and those of gradients the other way."""

    def __init__(self, axis: Axis, carry: Recurrent[Any]) -> None:
        self.axis, self.carry, self.count = axis, carry, len(carry.streams())

    def _on(self, given: tuple[Any, ...]) -> Recurrent[Any]:
        return self.carry.on(given[: self.count], given[self.count :])

    def forward(self, ops: Vocabulary[T], *given: T) -> tuple[T, tuple[T, ...]]:
        carry, found = self._on(given), list[T]()

        def body(state: tuple[T, ...]) -> tuple[T, ...]:
            mixed, after = carry.run(ops, state)
            found.append(mixed)
            return after

        state = ops.relay(self.axis, carry.initial(ops), body)
        return found[0], (*given, *state)

    def backward(self, ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T, ...]:
        """A rank's gradients, given that of the state it handed on."""
        count = len(self.carry.streams()) + len(self.carry.parameters())
        found: list[T] = []

        def run(*tensors: T) -> tuple[T, ...]:
            mixed, after = self._on(tensors[:count]).run(ops, tensors[count:])
            return (mixed, *after)

        def body(later: tuple[T, ...]) -> tuple[T, ...]:
            back = ops.pull_back(run, saved, (gradient, *later))
            found.extend(back[:count])
            return back[count:]

        ops.relay(self.axis, tuple(ops.zeros_like(x) for x in saved[count:]), body, reverse=True)
        return tuple(found)


state_serial = StateSerial()
