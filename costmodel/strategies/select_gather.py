"""All-gather of what is chosen from: every rank then chooses for its own queries, and attends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.selection import Selection
from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_stretches

T = TypeVar("T")


class SelectGather(Strategy):
    """Keys, values and summaries are gathered whole; keys and values again in the backward pass.

    Which blocks a rank's queries choose is known only once they have chosen, and together they choose nearly all, so
    nothing less than all is sent. A query reads as many blocks wherever it stands, but for the first few: contiguous
    stretches are balanced enough.
    """

    name: ClassVar[str] = "select-gather"
    title: ClassVar[str] = "all-gather of keys, values and block summaries; every rank chooses blocks"
    source: ClassVar[str] = "Grattafiori et al. 2024 (Llama 3), arXiv 2407.21783, section 3.3.2, with chosen blocks"
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Selection,)
    axes: ClassVar[tuple[str, ...]] = ("context",)

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        return equal_stretches(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Selection[T]) -> T:
        return carry.across(ops, axes["context"])


select_gather = SelectGather()
