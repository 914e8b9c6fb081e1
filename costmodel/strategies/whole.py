"""The whole sequence on one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, whole_pieces

T = TypeVar("T")


class Whole(Strategy):
    """No cut along the sequence; heads, width and batch may still be spread."""

    name = "whole"
    title = "whole sequence on each rank (data and tensor parallel only)"
    source = "-"
    carries = (Carry,)
    axes = ()
    extends = True
    documents = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        if at.phase != "decode":
            yield whole_pieces(at, at.tensor, "{length} tokens do not divide over {tensor} ranks")

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Carry[T]) -> T:
        return carry.whole(ops)


whole = Whole()
