"""States composed over ranks in a logarithmic number of rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Affine, State
from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_stretches

T = TypeVar("T")


class StateTree(Strategy):
    """Each rank composes what stretches of 1, 2, 4, ... ranks before it do to a state, and hands it on as far.

    Neither the work nor the wait grows with the number of ranks, only with its logarithm; but transitions travel and
    are composed too.
    """

    name: ClassVar[str] = "state-tree"
    title: ClassVar[str] = "parallel prefix of states, in log2(P) rounds"
    source: ClassVar[str] = (
        "Martin & Cundy 2018, arXiv 1709.04057; rounds of Hillis & Steele 1986, doi 10.1145/7902.7903"
    )
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (State,)
    axes: ClassVar[tuple[str, ...]] = ("context",)
    documents: ClassVar[bool] = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        return equal_stretches(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: State[T]) -> T:
        carry = carry.on_line(ops, axes["context"])
        prepared = carry.prepare(ops)
        tree = _Tree(axes["context"], carry, carry.summary(ops, prepared))
        state = ops.custom(tree.forward, tree.backward, *tree.does.tensors)
        return carry.outputs(ops, prepared, state)


class _Tree:
    """The prefix of states, and that of their gradients the other way."""

    def __init__(self, axis: Axis, carry: State[Any], does: Affine[Any]) -> None:
        self.axis, self.carry, self.does = axis, carry, does

    def forward(self, ops: Vocabulary[T], *does: T) -> tuple[tuple[T, ...], tuple[T, ...]]:
        def combine(earlier: tuple[T, ...], own: tuple[T, ...]) -> tuple[T, ...]:
            return self.carry.compose(ops, self.does.of(earlier), self.does.of(own)).tensors

        start = self.carry.initial(ops)
        so_far = ops.prefix(self.axis, does, combine)
        state = ops.pass_on(self.axis, start, self.carry.advance(ops, self.does.of(so_far), start))
        return state, (*does, *state)

    def backward(self, ops: Vocabulary[T], saved: tuple[T, ...], *gradients: T) -> tuple[T, ...]:
        """The gradient of the state before a rank is its own plus, transposed, that of the state after it."""
        count = len(self.does.tensors)
        does, state = self.does.of(saved[:count]), saved[count:]

        def combine(later: tuple[T, ...], own: tuple[T, ...]) -> tuple[T, ...]:
            after, here = self.does.of(later), self.does.of(own)
            back = Affine(self.carry.transposed(ops, here.transition), here.update)
            total = self.carry.advance(ops, back, after.update)
            return Affine(self.carry.join(ops, here.transition, after.transition), total).tensors

        own = self.carry.gradient_sent(ops, gradients, state)
        so_far = self.does.of(ops.prefix(self.axis, (*does.transition, *own), combine, reverse=True))
        zeros = tuple(ops.zeros_like(g) for g in own)
        later = ops.pass_on(self.axis, zeros, so_far.update, reverse=True)
        later = self.carry.gradient_received(ops, later, lambda: self.carry.advance(ops, does, state))

        def advance(*tensors: T) -> tuple[T, ...]:
            return self.carry.advance(ops, self.does.of(tensors), state)

        return ops.pull_back(advance, does.tensors, later)


state_tree = StateTree()
