"""All-gather of states: every rank composes the state it starts from by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Summed
from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_stretches

T = TypeVar("T")


class StateGather(Strategy):
    """Each rank sends what its tokens do to a state, once; bytes do not depend on the number of tokens."""

    name: ClassVar[str] = "state-gather"
    title: ClassVar[str] = "LASP-2: all-gather of states, composed on every rank"
    source: ClassVar[str] = "Sun et al. 2025, arXiv 2502.07563"
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Summed,)
    axes: ClassVar[tuple[str, ...]] = ("context",)
    documents: ClassVar[bool] = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        return equal_stretches(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Summed[T]) -> T:
        axis = axes["context"]
        carry = carry.on_line(ops, axes["context"])
        prepared = carry.prepare(ops)
        does = carry.summary(ops, prepared)
        gathered = tuple(ops.all_gather(ops.reshape(x, (1, *ops.shape(x))), axis, 0) for x in does.tensors)
        loop = Recurrence(
            "prefix of states",
            lambda ops, state, own, _: carry.advance(ops, does.of(own), state),
            lambda ops, before, after, own, _: before,
        )
        _, befores = ops.scan(loop, carry.initial(ops), gathered)
        mine = (ops.slice(x, 0, axis.rank, 1) for x in befores)
        return carry.outputs(ops, prepared, tuple(ops.reshape(x, ops.shape(x)[1:]) for x in mine))


state_gather = StateGather()
