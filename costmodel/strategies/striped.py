"""Striped ring: the causal ring in which every step is a triangle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from costmodel.dims import Dim
from costmodel.masks import Mask
from costmodel.places import Stripes
from costmodel.strategies.ring import Course, Part, Ring, Visit
from costmodel.strategy import Requirement, Situation, each_by_itself


class Striped(Ring):
    """Token i is on rank i mod P, so that every rank does half a block in every step.

    Query i of a rank sees the first i + 1 keys of an earlier rank's block, and the first i of a later one's. The ranks
    differ by one pair for each token.
    """

    name: ClassVar[str] = "striped"
    title: ClassVar[str] = "striped ring attention, balanced for causal masks"
    source: ClassVar[str] = "Brandon et al. 2023, arXiv 2311.09431; stripe_flash_attn of zhuzilin/ring-flash-attention"
    layout: ClassVar[str] = "striped"
    earlier: ClassVar[tuple[Part, ...]] = (Part(mask=Mask(causal=True)),)
    later: ClassVar[tuple[Part, ...]] = (Part("rest", "rest", Mask(causal=True)), Part("first", "cached"))

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield Requirement(at.causal, "it balances causal masks; without one every rank works alike: use ring")
        yield each_by_itself(at)
        yield from super().requirements(at)

    def own(self, course: Course, n: Dim) -> Mask:
        line = course.line
        return course.mask.placed(Stripes(line.size, line.rank, line.rank, 1, False, line.size * n))

    def placed(self, visit: Visit, parts: tuple[Part, ...], n: Dim) -> tuple[Part, ...]:
        """One part: which queries see a key depends on the document."""
        ((first, count),) = visit.rows  # of earlier ranks, or of later ones: it is for causal masks
        line = visit.course.line
        place = Stripes(line.size, line.rank, first, count, not visit.earlier, line.size * n, visit.calls)
        return (Part(mask=visit.course.mask.placed(place)),)


striped = Striped()
