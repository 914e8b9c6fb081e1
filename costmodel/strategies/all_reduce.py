"""Sums over all tokens, summed over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.total import Sums
from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_stretches

T = TypeVar("T")


class AllReduceSum(Strategy):
    """Each rank sums up its own tokens; what is sent does not depend on their number."""

    name: ClassVar[str] = "all-reduce"
    title: ClassVar[str] = "all-reduce of the small factor"
    source: ClassVar[str] = "Sun et al. 2025 (LASP-2), arXiv 2502.07563, section 3, without a mask"
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Sums,)
    axes: ClassVar[tuple[str, ...]] = ("context",)
    cuts_rows: ClassVar[bool] = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        return equal_stretches(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Sums[T]) -> T:
        return carry.over(ops, axes["context"])


all_reduce = AllReduceSum()
