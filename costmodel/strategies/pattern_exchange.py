"""Exchange of what a static pattern names: rows at the cut, rows that all see, tokens of a lane."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from costmodel.carries.pattern import Pattern
from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, divides, equal_stretches

T = TypeVar("T")


class PatternExchange(Strategy):
    """Halos for windows, a broadcast and a reduction for global tokens, an all-to-all for lanes of strided tokens."""

    name: ClassVar[str] = "pattern-exchange"
    title: ClassVar[str] = "exchange of the rows that a static pattern names"
    source: ClassVar[str] = (
        "halos as in stencil codes; global rows reduced as in Shyam et al. 2024, arXiv 2408.04093; "
        "lanes exchanged as heads are in Jacobs et al. 2023, arXiv 2309.14509"
    )
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Pattern,)
    axes: ClassVar[tuple[str, ...]] = ("context",)

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield from equal_stretches(at)
        yield Requirement(
            np.greater_equal(at.length / at.context, at.reach),
            "the pattern needs {reach} tokens beside each other, more than {length} / {context} ranks has",
        )
        yield divides(at.lanes, at.context, "{lanes} lanes of strided tokens do not divide over {context} ranks")

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Pattern[T]) -> T:
        return carry.beside(ops, axes["context"])


pattern_exchange = PatternExchange()
