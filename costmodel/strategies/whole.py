"""The whole sequence on one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy

T = TypeVar("T")


class Whole(Strategy):
    """No cut along the sequence; heads, width and batch may still be spread."""

    name = "whole"
    title = "whole sequence on each rank (data and tensor parallel only)"
    source = "-"
    carries = (Carry,)
    axes = ()
    extends = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield from ()

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Carry[T]) -> T:
        return carry.whole(ops)


whole = Whole()
