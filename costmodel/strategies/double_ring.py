"""Double ring: keys and values go round among near ranks, and then a group further."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from costmodel.carries.pairs import Pairs
from costmodel.dims import Dim
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategies.ring import Absorb, Course, Part, Spread, Visit
from costmodel.strategies.zigzag import Zigzag
from costmodel.strategy import Requirement, Situation, equal_halves_on_grid, only_fused, only_passes

T = TypeVar("T")


class DoubleRing(Zigzag):
    """An inner ring along the Ulysses axis within an outer one along the context axis, in zigzag order over both.

    A block hops once between groups while it goes round in one, so that P_c - 1 of the P - 1 hops are far, each hidden
    behind P_u steps of attention. No heads are exchanged.
    """

    name: ClassVar[str] = "double-ring"
    title: ClassVar[str] = "double ring: near ranks in an inner ring, groups of them in an outer one"
    source: ClassVar[str] = "Gu et al. 2024 (LoongTrain), arXiv 2406.18485, double-ring attention"
    axes: ClassVar[tuple[str, ...]] = ("ulysses", "context")
    inner_layout: ClassVar[str] = "zigzag"

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield only_passes(at, "forward", "train", "prefill")
        yield only_fused(at)
        yield Requirement(at.window is None, "a ring takes every key past every rank, which a window does not need")
        yield equal_halves_on_grid(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Pairs[T]) -> T:
        outer, inner = axes["context"], axes["ulysses"]
        before = outer.rank * inner.size
        line = Axis("sequence", outer.size * inner.size, before + inner.rank)
        far, near = Course(outer, carry.mask, carry.scale, line), Course(inner, carry.mask, carry.scale, line, before)
        rings = _Rings(self, far, near)
        result: T = ops.custom(rings.forward, rings.backward, carry.q, carry.k, carry.v)
        return result


@dataclass(frozen=True)
class _Rings:
    """The algorithm: groups of ranks visit each other by the outer ring, their blocks by the inner one."""

    steps: DoubleRing
    outer: Course
    inner: Course

    def forward(self, ops: Vocabulary[T], q: T, k: T, v: T) -> tuple[T, tuple[T, ...]]:
        out: Any = None
        lse: Any = None
        for step, group, _ in ops.rotate(self.outer.axis, (k, v)):
            if step == 0:
                out, lse = self.steps.around(ops, self.inner, q, (group[0], group[1]))
            else:
                absorb = _AbsorbGroup(self, Absorb(ops, q, group, self.outer.scale, out, lse))
                out, lse = self.steps.branch(ops, self.outer, step, absorb)
        result: T = ops.cast(out, "model")
        return result, (q, k, v, result, lse)

    def backward(self, ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T, ...]:
        q, k, v, out, lse = saved
        queries = q, out, lse, gradient
        dq = ops.zeros_like(q, "accumulate")
        travelling = (ops.zeros_like(k, "gradient"), ops.zeros_like(v, "gradient"))
        for step, (k_, v_), home in ops.rotate(self.outer.axis, (k, v), travelling):
            if step == 0:
                dk, dv = home.arrive()
                dq, dk, dv = self.steps.back_around(ops, self.inner, queries, (k_, v_), (dq, dk, dv))
            else:
                spread = _SpreadGroup(self, Spread(ops, queries, (k_, v_), self.outer.scale, dq, home))
                dq, dk, dv = self.steps.branch(ops, self.outer, step, spread)
            home.depart(dk, dv)
        return tuple(ops.cast(x, "model") for x in (dq, *home.home()))


@dataclass(frozen=True)
class _AbsorbGroup:
    """Forward work of an outer step: the same part of every block of the visiting group."""

    rings: _Rings
    start: Absorb

    @property
    def tokens(self) -> Dim:
        return self.start.tokens

    def __call__(self, parts: tuple[Part, ...], visit: Visit) -> tuple[Any, Any]:
        ops, axis, found = self.start.ops, self.rings.inner.axis, (self.start.out, self.start.lse)
        for step, block, _ in ops.rotate(axis, self.start.block):
            absorb = replace(self.start, block=block, out=found[0], lse=found[1])
            found = absorb(parts, visit.inside(ops, axis, step))
        return found


@dataclass(frozen=True)
class _SpreadGroup:
    """Backward work of an outer step: gradients go round within the group, and then on with it."""

    rings: _Rings
    start: Spread

    @property
    def tokens(self) -> Dim:
        return self.start.tokens

    def __call__(self, parts: tuple[Part, ...], visit: Visit) -> tuple[Any, Any, Any]:
        ops, axis, dq = self.start.ops, self.rings.inner.axis, self.start.dq
        for step, block, home in ops.rotate(axis, self.start.block, self.start.home.arrive()):
            dq, dk, dv = replace(self.start, block=block, dq=dq, home=home)(parts, visit.inside(ops, axis, step))
            home.depart(dk, dv)
        return (dq, *home.home())


double_ring = DoubleRing()
