"""Ranks one after the other: each works on its tokens when it has the state of the rank before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Recurrent
from costmodel.carry import Carry
from costmodel.dims import minimum
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_stretches

T = TypeVar("T")


class StateSerial(Strategy):
    """A nonlinear recurrence cannot be cut in time, so ranks wait for each other; memory is spread all the same.

    One hand-over a rank. The last rank ends after the work of all; what needs no state (projections, feed-forward) is
    done at the same time. A rank keeps the state it starts from and its tokens, and goes through them again on the way
    back. Layers are timed one after the other; that first ranks could begin the next meanwhile is not counted.
    """

    name: ClassVar[str] = "state-serial"
    title: ClassVar[str] = "nonlinear recurrence, one rank after the other"
    source: ClassVar[str] = "-"
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Recurrent,)
    axes: ClassVar[tuple[str, ...]] = ("context",)
    documents: ClassVar[bool] = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        return equal_stretches(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Recurrent[T]) -> T:
        turns = _Turns(axes["context"], carry.on_line(ops, axes["context"]))
        mixed: T = ops.custom(turns.forward, turns.backward, *carry.streams(), *carry.parameters(), *carry.initial(ops))
        return mixed


class _Turns:
    """The ranks' turns, and those of gradients the other way."""

    def __init__(self, axis: Axis, carry: Recurrent[Any]) -> None:
        self.axis, self.carry = axis, carry
        self.streams = len(carry.streams())
        self.count = self.streams + len(carry.parameters())

    def _run(self, ops: Vocabulary[T], *given: T) -> tuple[T, ...]:
        """The mixed values and the state after this rank's tokens, from streams, parameters and the state before."""
        own = self.carry.on(given[: self.streams], given[self.streams : self.count])
        mixed, after = own.run(ops, given[self.count :])
        return (mixed, *after)

    def forward(self, ops: Vocabulary[T], *given: T) -> tuple[T, tuple[T, ...]]:
        own, found = given[: self.count], list[T]()

        def body(state: tuple[T, ...]) -> tuple[T, ...]:
            mixed, *after = self._run(ops, *own, *state)
            found.append(mixed)
            return tuple(after)

        state = ops.relay(self.axis, given[self.count :], body)
        return found[0], (*own, *state)

    def backward(self, ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[Any, ...]:
        """A rank's gradients, given that of the state it handed on; the first has that of the state of all too."""
        found = list[T]()

        def body(later: tuple[T, ...]) -> tuple[T, ...]:
            found.extend(ops.pull_back(partial(self._run, ops), saved, (gradient, *later)))
            return tuple(found[self.count :])

        ops.relay(self.axis, tuple(ops.zeros_like(x) for x in saved[self.count :]), body, reverse=True)
        first = 1 - minimum(self.axis.rank, 1)
        return (*found[: self.count], *(partial(ops.scale, x, first) for x in found[self.count :]))


state_serial = StateSerial()
