"""Halo exchange: the tokens at a cut, from the neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from costmodel.carries.neighbours import Near
from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_stretches

T = TypeVar("T")


class Halo(Strategy):
    """Each rank gets as many tokens of its neighbours as its own tokens see beyond the cut."""

    name: ClassVar[str] = "halo"
    title: ClassVar[str] = "halo exchange with the neighbours"
    source: ClassVar[str] = "stencil codes; for convolutions, Dryden et al. 2019, arXiv 1903.06681"
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Near,)
    axes: ClassVar[tuple[str, ...]] = ("context",)
    documents: ClassVar[bool] = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield from equal_stretches(at)
        yield Requirement(
            np.greater_equal(at.length / at.context, at.reach),
            "tokens see {reach} others to one side, more than {length} / {context} ranks has",
        )

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Near[T]) -> T:
        return carry.on_line(ops, axes["context"]).beside(ops, axes["context"])


halo = Halo()
