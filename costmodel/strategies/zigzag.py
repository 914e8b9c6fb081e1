"""Zigzag ring: the causal ring with equal work on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from costmodel.dims import Dim, divide
from costmodel.documents import Span
from costmodel.ops.mesh import Axis
from costmodel.strategies.ring import Part, Ring
from costmodel.strategy import Requirement, Situation, equal_halves


class Zigzag(Ring):
    """Rank r holds pieces r and 2 P - 1 - r of 2 P, so that every rank does half a block in every step.

    A block of an earlier rank is needed by all queries, but only its first half; of a later rank's block, all is
    needed, but only by the second half of the queries.
    """

    name: ClassVar[str] = "zigzag"
    title: ClassVar[str] = "ring attention, balanced for causal masks"
    source: ClassVar[str] = "zhuzilin/ring-flash-attention; DualChunkSwap of NVIDIA TransformerEngine"
    layout: ClassVar[str] = "zigzag"
    earlier: ClassVar[tuple[Part, ...]] = (Part(keys="early"),)
    later: ClassVar[tuple[Part, ...]] = (Part(queries="late"), Part("early", "cached"))

    def spans(self, first: Dim, count: Dim, line: Axis, n: Dim) -> tuple[Span, ...]:
        half, mirrored = divide(n, 2), 2 * line.size - first
        return (first * half, (first + count) * half), ((mirrored - count) * half, mirrored * half)

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield Requirement(at.causal, "it balances causal masks; without one every rank works alike: use ring")
        yield from super().requirements(at)
        yield equal_halves(at)


zigzag = Zigzag()
