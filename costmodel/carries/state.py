"""The state carry: what the tokens before a cut leave for those after it is a state of fixed size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
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
    documents: ClassVar[bool] = True

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


class Summed(Carry[T]):
    """Ranks work at the same time: each says in short what its tokens do to any state, without knowing the state.

    What the ranks before do, one after the other, gives each rank the state it starts from.
    """

    kind: ClassVar[str] = "states one after the other"

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
    def advance(self, ops: Vocabulary[T], does: Affine[T], state: Tensors[T]) -> Tensors[T]:
        """The state after a stretch of tokens."""

    @abstractmethod
    def outputs(self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T]) -> T:
        """The mixed values [B, H, n, e], given the state before."""

    def whole(self, ops: Vocabulary[T]) -> T:
        return self.outputs(ops, self.prepare(ops), self.initial(ops))


class State(Summed[T]):
    """A recurrence that is affine in its state, perhaps up to a scale, so that stretches can be composed.

    P is lower triangular and semiseparable.
    """

    kind: ClassVar[str] = "state"
    documents: ClassVar[bool] = True

    def move(self, ops: Vocabulary[T], transition: Tensors[T], state: Tensors[T]) -> Tensors[T]:
        """A transition applied to a state, or to an earlier transition; elementwise, unless a mixer says otherwise."""
        if not transition:
            return state
        (decay,) = transition
        return tuple(ops.mul(s, decay) for s in state)

    def transposed(self, ops: Vocabulary[T], transition: Tensors[T]) -> Tensors[T]:
        """The transition by which gradients go the other way; ``move`` takes it too."""
        return transition

    def join(self, ops: Vocabulary[T], first: Tensors[T], then: Tensors[T]) -> Tensors[T]:
        """The transition of two stretches, one after the other."""
        return self.move(ops, then, first)

    def gradient_sent(self, ops: Vocabulary[T], gradient: Tensors[T], state: Tensors[T]) -> Tensors[T]:
        """What goes back over ranks for the gradient of a state, and is advanced by transposed transitions."""
        return gradient

    def gradient_received(self, ops: Vocabulary[T], sent: Tensors[T], state: Callable[[], Tensors[T]]) -> Tensors[T]:
        """The gradient of a state, from what comes back for it."""
        return sent

    def advance(self, ops: Vocabulary[T], does: Affine[T], state: Tensors[T]) -> Tensors[T]:
        moved = self.move(ops, does.transition, state)
        return tuple(ops.add(s, u) for s, u in zip(moved, does.update, strict=True))

    def compose(self, ops: Vocabulary[T], first: Affine[T], then: Affine[T]) -> Affine[T]:
        """What two stretches do, one after the other."""
        return Affine(self.join(ops, first.transition, then.transition), self.advance(ops, then, first.update))
