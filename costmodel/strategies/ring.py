"""Ring attention: keys and values go round, queries stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

from costmodel.carries.pairs import Pairs
from costmodel.dims import Dim, divide, is_number, maximum
from costmodel.documents import Span
from costmodel.masks import Mask
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Travelling, Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, only_fused, only_passes, whole_pieces

T = TypeVar("T")

NO_MASK = Mask()

#: Ranks in rows: the first of a row, and how many follow on each other.
Rows = tuple[tuple[Dim, Dim], ...]


@dataclass(frozen=True)
class Part:
    """Which of a rank's queries need which keys of a visiting block, and the mask between them.

    Keys begin with cached ones, if there are any: as many as there are more keys than queries.

    Attributes:
        queries: ``all``, ``early`` and ``late`` (the halves), ``first``, or ``rest`` (all but the first).
        keys: ``all``, ``early`` (without the second half of the new ones), ``cached``, or ``rest`` (all but the last).
    """

    queries: str = "all"
    keys: str = "all"
    mask: Mask = NO_MASK

    def of(
        self, ops: Vocabulary[T], queries: tuple[T, ...], keys: tuple[T, ...]
    ) -> tuple[tuple[T, ...], tuple[T, ...]]:
        """The part, as views, of tensors along queries and of tensors along keys (both at dimension 2)."""
        n_q, n_k = (ops.shape(x)[2] for x in (queries[0], keys[0]))
        if self.queries != "all":
            start, size = self._taken(n_q)
            queries = tuple(ops.slice(x, 2, start, size) for x in queries)
        if self.keys != "all":
            seen = self._seen(n_q, n_k)
            keys = tuple(ops.slice(x, 2, 0, seen) for x in keys)
        return queries, keys

    def first_query(self, ops: Vocabulary[T], q: T) -> Dim:
        return self._taken(ops.shape(q)[2])[0]

    def _taken(self, n: Dim) -> tuple[Dim, Dim]:
        """The first of n queries, and how many there are."""
        if self.queries in ("early", "late"):
            half = divide(n, 2)
            return (0 if self.queries == "early" else half), half
        return {"all": (0, n), "first": (0, 1), "rest": (1, n - 1)}[self.queries]

    def _seen(self, n_q: Dim, n_k: Dim) -> Dim:
        """How many keys, from the first on."""
        if self.keys == "early":
            return n_k - divide(n_q, 2)
        return n_k - n_q if self.keys == "cached" else n_k - 1


def some(ops: Vocabulary[T], parts: tuple[Part, ...], q: T, k: T) -> Iterator[Part]:
    """The parts in which there is anything: those of cached keys only where there are such."""
    cached = not is_number(ops.shape(k)[2] - ops.shape(q)[2], 0)
    return (part for part in parts if cached or part.keys != "cached")


@dataclass(frozen=True)
class Ring(Strategy):
    """Contiguous blocks of keys and values pass every rank, each step hidden behind the attention of the last one.

    With a causal mask rank r works in r + 1 of the P steps, so the last rank sets the time: up to twice the balanced
    one (see ``zigzag``).
    """

    name: ClassVar[str] = "ring"
    title: ClassVar[str] = "ring attention, contiguous blocks"
    source: ClassVar[str] = (
        "Liu et al. 2023, arXiv 2310.01889; backward as in zhuzilin/ring-flash-attention; after cached tokens, pass-KV "
        "of Yang et al. 2024, arXiv 2411.01783"
    )
    axes: ClassVar[tuple[str, ...]] = ("context",)
    extends: ClassVar[bool] = True
    documents: ClassVar[bool] = True

    #: What is done with a block of an earlier rank, and of a later one, under a causal mask.
    earlier: ClassVar[tuple[Part, ...]] = (Part(),)
    later: ClassVar[tuple[Part, ...]] = (Part(keys="cached"),)

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield only_passes(at, "forward", "train", "prefill")
        yield only_fused(at)
        yield Requirement(
            at.window is None,
            "a ring takes every key past every rank, which a sliding window does not need: use window-halo",
        )
        yield whole_pieces(at, at.context * at.tensor, "{length} tokens do not divide over {context} x {tensor} ranks")

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Pairs[T]) -> T:
        axis = axes["context"]
        course = Course(axis, carry.mask, carry.scale, axis)

        def forward(ops: Vocabulary[T], q: T, k: T, v: T) -> tuple[T, tuple[T, ...]]:
            out, lse = self.around(ops, course, q, (k, v))
            result: T = ops.cast(out, "model")
            return result, (q, k, v, result, lse)

        def backward(ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T, ...]:
            return self._backward(ops, course, saved, gradient)

        result: T = ops.custom(forward, backward, carry.q, carry.k, carry.v)
        return result

    def around(self, ops: Vocabulary[T], course: Course, q: T, keys: tuple[T, T]) -> tuple[T, T]:
        """Output, at accumulation width, and log-sum-exp of queries past which the keys of every rank go."""
        out: Any = None
        lse: Any = None
        for step, block, _ in ops.rotate(course.axis, keys):
            if step == 0:
                own = self.own(course, ops.shape(q)[2])
                first, lse = ops.attention(q, block[0], block[1], own, course.scale)
                out = ops.cast(first, "accumulate")
            else:
                out, lse = self.branch(ops, course, step, Absorb(ops, q, block, course.scale, out, lse))
        return out, lse

    def _backward(self, ops: Vocabulary[T], course: Course, saved: tuple[T, ...], gradient: T) -> tuple[T, ...]:
        q, k, v, out, lse = saved
        zeros = ops.zeros_like(q, "accumulate"), ops.zeros_like(k, "gradient"), ops.zeros_like(v, "gradient")
        found = self.back_around(ops, course, (q, out, lse, gradient), (k, v), zeros)
        return tuple(ops.cast(x, "model") for x in found)

    def back_around(
        self,
        ops: Vocabulary[T],
        course: Course,
        queries: tuple[T, ...],
        keys: tuple[T, T],
        running: tuple[T, T, T],
    ) -> tuple[T, T, T]:
        """Gradients of q, k and v added to running ones; ``queries`` are q, out, lse and the output's gradient."""
        dq, *travelling = running
        for step, block, home in ops.rotate(course.axis, keys, tuple(travelling)):
            spread = Spread(ops, queries, block, course.scale, dq, home)
            if step == 0:
                dq, dk, dv = spread((Part(mask=self.own(course, spread.tokens)),))
            else:
                dq, dk, dv = self.branch(ops, course, step, spread)
            home.depart(dk, dv)
        dk, dv = home.home()
        return dq, dk, dv

    def branch(self, ops: Vocabulary[T], course: Course, step: Any, work: Work) -> Any:
        """The work that the mask leaves of a visiting block."""

        def of(parts: tuple[Part, ...], earlier: bool | None) -> Any:
            return work(parts, Visit(self, course, ops.visitors(course.axis, step, earlier), earlier))

        if not course.mask.causal:
            return of((Part(),), None)
        return ops.when(step <= course.axis.rank, lambda: of(self.earlier, True), lambda: of(self.later, False))

    def spans(self, first: Dim, count: Dim, line: Axis, n: Dim) -> tuple[Span, ...]:
        """Where the blocks of n tokens of ranks that follow each other are, stretch by stretch."""
        return ((first * n, (first + count) * n),)

    def own(self, course: Course, n: Dim) -> Mask:
        """The mask between a rank's own queries and keys."""
        spans = self.spans(course.line.rank, 1, course.line, n)
        return course.mask.at(spans, spans)

    def placed(self, visit: Visit, parts: tuple[Part, ...], n: Dim) -> tuple[Part, ...]:
        """Parts of visiting blocks of n tokens with the documents that they lie in; no keys are cached."""
        line = visit.course.line
        queries = self.spans(line.rank, 1, line, n)
        keys = [self.spans(first, count, line, n) for first, count in visit.rows]

        def place(part: Part) -> Mask:
            seen = tuple(span for spans in keys for span in (spans[:1] if part.keys == "early" else spans))
            return visit.unruled.at(queries[1:] if part.queries == "late" else queries, seen, visit.calls)

        return tuple(replace(part, mask=place(part)) for part in parts if part.keys != "cached")


@dataclass(frozen=True)
class Course:
    """What goes round a ring, and where its ranks are in the sequence.

    Attributes:
        mask: over the whole sequence.
        line: all ranks that hold the sequence, in the order of the layout.
        before: how many of them come before the first of the ring's axis.
    """

    axis: Axis
    mask: Mask
    scale: Dim
    line: Axis
    before: Dim = 0


@dataclass(frozen=True)
class Visit:
    """Blocks of other ranks that are at hand at a step.

    Attributes:
        found: ranks of the axis, or groups of ranks, row by row: the first, and how many follow on each other.
        earlier: whether they come before this one; ``None`` where that is of no consequence.
    """

    ring: Ring
    course: Course
    found: Rows
    earlier: bool | None

    @property
    def rows(self) -> Rows:
        """Their ranks on the line."""
        return tuple((self.course.before + first, count) for first, count in self.found)

    @property
    def calls(self) -> Dim:
        """How many blocks they are; at least one, of a loop that is never run, too."""
        return maximum(sum(count for _, count in self.found), 1)

    @property
    def unruled(self) -> Mask:
        """Documents alone: blocks of other ranks are seen whole, or not at all."""
        return Mask(documents=self.course.mask.documents)

    def placed(self, parts: tuple[Part, ...], n: Dim) -> tuple[Part, ...]:
        """Parts of these blocks of n tokens, with the documents that they lie in."""
        return parts if self.course.mask.documents is None else self.ring.placed(self, parts, n)

    def inside(self, ops: Vocabulary[Any], axis: Axis, step: Any) -> Visit:
        """Of groups of ranks, whose blocks go round in an inner ring: the blocks at hand at a step of that."""
        inner = ops.visitors(axis, step, None, own=True)
        rows = ((group * axis.size + first, groups * count) for group, groups in self.found for first, count in inner)
        return replace(self, found=tuple(rows))


class Work(Protocol):
    """What is done with parts of a visiting block.

    Attributes:
        tokens: a rank's queries.
    """

    @property
    def tokens(self) -> Dim: ...

    def __call__(self, parts: tuple[Part, ...], visit: Visit) -> Any: ...


@dataclass(frozen=True)
class Absorb:
    """Forward work of one step: attention over a part of the visiting block, merged into the running output."""

    ops: Vocabulary[Any]
    q: Any
    block: tuple[Any, ...]
    scale: Dim
    out: Any
    lse: Any

    @property
    def tokens(self) -> Dim:
        return self.ops.shape(self.q)[2]

    def __call__(self, parts: tuple[Part, ...], visit: Visit) -> tuple[Any, Any]:
        out, lse = self.out, self.lse
        for part in some(self.ops, visit.placed(parts, self.tokens), self.q, self.block[0]):
            (q,), (k, v) = part.of(self.ops, (self.q,), self.block)
            block_out, block_lse = self.ops.attention(q, k, v, part.mask, self.scale)
            out, lse = self.ops.merge(out, lse, block_out, block_lse, part.first_query(self.ops, self.q))
        return out, lse


@dataclass(frozen=True)
class Spread:
    """Backward work of one step: gradients of a part of the queries and of the visiting block, added up."""

    ops: Vocabulary[Any]
    queries: tuple[Any, ...]  #: q, out, lse and the output's gradient
    block: tuple[Any, ...]
    scale: Dim
    dq: Any
    home: Travelling[Any]

    @property
    def tokens(self) -> Dim:
        return self.ops.shape(self.queries[0])[2]

    def __call__(self, parts: tuple[Part, ...], visit: Visit | None = None) -> tuple[Any, Any, Any]:
        """The parts, with the documents that they lie in if they are of other ranks."""
        ops, found = self.ops, []
        parts = parts if visit is None else visit.placed(parts, self.tokens)
        for part in some(ops, parts, self.queries[0], self.block[0]):
            (q, out, lse, gradient), (k, v) = part.of(ops, self.queries, self.block)
            found.append((part, ops.attention_backward(q, k, v, out, lse, gradient, part.mask, self.scale)))
        dq, (dk, dv) = self.dq, self.home.arrive()
        for part, (bq, bk, bv) in found:
            dq = ops.add_into(dq, bq, 2, part.first_query(ops, self.queries[0]))
            dk, dv = ops.add_into(dk, bk, 2), ops.add_into(dv, bv, 2)
        return dq, dk, dv


ring = Ring()
