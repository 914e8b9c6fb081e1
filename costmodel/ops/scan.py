"""A loop over an axis as one kernel: what recurrences are made of, chunk by chunk or token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, Shape

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary

Many = tuple[Any, ...]


@dataclass(frozen=True)
class Recurrence:
    """What a scan does in each step; the state stays on chip.

    Attributes:
        advance: ``advance(ops, state, x, constants)`` gives the next state, from tuples of tensors.
        emit: ``emit(ops, before, after, x, constants)`` gives what the step hands out, given the state before and
            after it.
        family: of the kernel: ``scan``, or ``recurrence`` where a step is of one token, so that its products are of
            single rows.
    """

    name: str
    advance: Callable[[Any, Many, Many, Many], Many] = field(compare=False)
    emit: Callable[[Any, Many, Many, Many, Many], Many] = field(compare=False)
    family: str = "scan"

    def sweep(self) -> Recurrence:
        """The same loop, handing out the states before each step and nothing else."""
        return Recurrence(f"{self.name} again", self.advance, lambda ops, before, *_: before, self.family)


def without_axis(shape: Shape, axis: int) -> Shape:
    """The shape of one step's entry."""
    return (*shape[:axis], *shape[axis + 1 :])


def with_axis(shape: Shape, axis: int, size: Dim) -> Shape:
    """The shape of all steps' entries."""
    return (*shape[:axis], size, *shape[axis:])


@dataclass(frozen=True)
class Operands:
    """What a scan is given: the state before it, what each step reads of its own, and what all steps read."""

    state: Many
    xs: Many
    constants: Many
    axis: int
    reverse: bool = False

    @property
    def all(self) -> Many:
        return (*self.state, *self.xs, *self.constants)

    @classmethod
    def of(cls, tensors: Sequence[Any], states: int, xs: int, axis: int, reverse: bool) -> Operands:
        """From the tensors of ``all``, and how many of them are what."""
        parts = tuple(tensors[:states]), tuple(tensors[states : states + xs]), tuple(tensors[states + xs :])
        return cls(*parts, axis, reverse)


def backward(ops: Vocabulary[Any], loop: Recurrence, given: Operands, gradients: Sequence[Any]) -> Many:
    """Gradients of the state, the steps' own and the common operands of a scan.

    One kernel goes through again and keeps the state before each step; another goes back through them, repeating each
    step to differentiate it.

    Args:
        gradients: of the last state and of what the steps handed out; ``None`` for what nobody used.
    """
    states = len(given.state)
    last, handed = gradients[:states], gradients[states:]
    used = [place for place, gradient in enumerate(handed) if gradient is not None]
    befores = ops.scan(loop.sweep(), given.state, given.xs, given.constants, given.axis, given.reverse)[1]
    start = tuple(
        ops.zeros_like(x) if gradient is None else gradient
        for x, gradient in zip((*given.state, *given.constants), (*last, *([None] * len(given.constants))), strict=True)
    )
    own = (*given.xs, *befores, *(handed[place] for place in used))
    back = _Back(loop, states, len(given.xs), used)
    finals, dxs = ops.scan(
        Recurrence(f"{loop.name} backward", back.advance, back.emit, loop.family),
        start,
        own,
        given.constants,
        given.axis,
        not given.reverse,
    )
    return (*finals[:states], *dxs, *finals[states:])


@dataclass(frozen=True)
class _Back:
    """One step of the way back. Its state: gradients of the loop's state, and sums of those of the constants.

    Each step is differentiated once: ``advance`` keeps the gradients of the step's own operands for ``emit``, which
    is called right after it.
    """

    loop: Recurrence
    states: int
    xs: int
    used: Sequence[int]
    found: list[Any] = field(default_factory=list)

    def advance(self, ops: Vocabulary[Any], state: Many, own: Many, constants: Many) -> Many:
        after, sums = state[: self.states], state[self.states :]
        x, before, handed = (
            own[: self.xs],
            own[self.xs : self.xs + self.states],
            own[self.xs + self.states :],
        )

        def step(*tensors: Any) -> Many:
            s, own_x = tensors[: self.states], tensors[self.states : self.states + self.xs]
            common = tensors[self.states + self.xs :]
            following = self.loop.advance(ops, s, own_x, common)
            out = self.loop.emit(ops, s, following, own_x, common)
            return (*following, *(out[place] for place in self.used))

        found = ops.pull_back(step, (*before, *x, *constants), (*after, *handed))
        self.found[:] = found[self.states : self.states + self.xs]
        more = found[self.states + self.xs :]
        return (*found[: self.states], *(ops.add(a, b) for a, b in zip(sums, more, strict=True)))

    def emit(self, ops: Vocabulary[Any], before: Many, after: Many, own: Many, constants: Many) -> Many:
        found = tuple(self.found)
        self.found.clear()
        return found
