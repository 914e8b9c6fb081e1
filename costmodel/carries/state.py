"""The state carry: what the tokens before a cut leave for those after it is a state of fixed size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from costmodel.carry import Carry
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")

Tensors = tuple[T, ...]


class Recurrent(Carry[T]):
    """Tokens one after the other, each changing a state in a way that has no short summary.

    A rank can do nothing before it has the state that the rank before it ends with.
    """

    kind: ClassVar[str] = "nonlinear state"

    @abstractmethod
    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        """The state before the first token."""

    @abstractmethod
    def run(self, ops: Vocabulary[T], state: Tensors[T]) -> tuple[T, Tensors[T]]:
        """The mixed values [B, H, n, e] of this rank's tokens, and the state after them, given the state before."""

    def whole(self, ops: Vocabulary[T]) -> T:
        return self.run(ops, self.initial(ops))[0]


@dataclass(frozen=True)
class Affine(Generic[T]):
    """What a stretch of tokens does to the state: ``transition`` applied to it, plus ``update``.

    ``transition`` is empty where the state only grows.
    """

    transition: Tensors[T]
    update: Tensors[T]

    @property
    def tensors(self) -> Tensors[T]:
        return (*self.transition, *self.update)

    def of(self, tensors: Sequence[T]) -> Affine[T]:
        """Other tensors in the same places."""
        cut = len(self.transition)
        return Affine(tuple(tensors[:cut]), tuple(tensors[cut:]))


class State(Carry[T]):
    """A recurrence that is affine in its state, so that ranks can work at the same time.

    P is lower triangular and semiseparable. Each rank finds what its tokens do to any state, without knowing the
    state; composing that over the ranks before gives each rank the state it starts from.
    """

    kind: ClassVar[str] = "state"

    @abstractmethod
    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        """The state before the first token."""

    @abstractmethod
    def prepare(self, ops: Vocabulary[T]) -> Tensors[T]:
        """The work that does not need the state before; handed to the methods below."""

    @abstractmethod
    def summary(self, ops: Vocabulary[T], prepared: Tensors[T]) -> Affine[T]:
        """What this rank's tokens do to the state."""

    @abstractmethod
    def outputs(self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T]) -> T:
        """The mixed values [B, H, n, e], given the state before."""

    def move(self, ops: Vocabulary[T], transition: Tensors[T], state: Tensors[T]) -> Tensors[T]:
        """A transition applied to a state, or to an earlier transition; elementwise, unless a mixer says otherwise."""
        if not transition:
            return state
        (decay,) = transition
        return tuple(ops.mul(s, decay) for s in state)

    def transposed(self, ops: Vocabulary[T], transition: Tensors[T]) -> Tensors[T]:
        """The transition by which gradients go the other way; ``move`` takes it too."""
        return transition

    def advance(self, ops: Vocabulary[T], does: Affine[T], state: Tensors[T]) -> Tensors[T]:
        """The state after a stretch of tokens."""
        moved = self.move(ops, does.transition, state)
        return tuple(ops.add(s, u) for s, u in zip(moved, does.update, strict=True))

    def compose(self, ops: Vocabulary[T], first: Affine[T], then: Affine[T]) -> Affine[T]:
        """What two stretches do, one after the other."""
        return Affine(self.move(ops, then.transition, first.transition), self.advance(ops, then, first.update))

    def whole(self, ops: Vocabulary[T]) -> T:
        return self.outputs(ops, self.prepare(ops), self.initial(ops))
