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
        axis, mask, scale = axes["context"], carry.mask, carry.scale

        def forward(ops: Vocabulary[T], q: T, k: T, v: T) -> tuple[T, tuple[T, ...]]:
            return self._forward(ops, axis, mask, scale, (q, k, v))

        def backward(ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T, ...]:
            return self._backward(ops, axis, mask, scale, saved, gradient)

        result: T = ops.custom(forward, backward, carry.q, carry.k, carry.v)
        return result

    def _forward(
        self, ops: Vocabulary[T], axis: Axis, mask: Mask, scale: Dim, qkv: tuple[T, T, T]
    ) -> tuple[T, tuple[T, ...]]:
        q, k, v = qkv
        out, lse = self.around(ops, axis, mask, scale, q, (k, v))
        result: T = ops.cast(out, "model")
        return result, (q, k, v, result, lse)

    def around(self, ops: Vocabulary[T], axis: Axis, mask: Mask, scale: Dim, q: T, keys: tuple[T, T]) -> tuple[T, T]:
        """Output, at accumulation width, and log-sum-exp of queries past which the keys of every rank go."""
        out: Any = None
        lse: Any = None
        for step, block, _ in ops.rotate(axis, keys):
            if step == 0:
                own = self._own(axis, mask, ops.shape(q)[2])
                first, lse = ops.attention(q, block[0], block[1], own, scale)
                out = ops.cast(first, "accumulate")
            else:
                out, lse = self.branch(ops, axis, mask, step, Absorb(ops, q, block, scale, out, lse))
        return out, lse

    def _backward(
        self, ops: Vocabulary[T], axis: Axis, mask: Mask, scale: Dim, saved: tuple[T, ...], gradient: T
    ) -> tuple[T, ...]:
        q, k, v, out, lse = saved
        zeros = ops.zeros_like(q, "accumulate"), ops.zeros_like(k, "gradient"), ops.zeros_like(v, "gradient")
        found = self.back_around(ops, axis, mask, scale, (q, out, lse, gradient), (k, v), zeros)
        return tuple(ops.cast(x, "model") for x in found)

    def back_around(
        self,
        ops: Vocabulary[T],
        axis: Axis,
        mask: Mask,
        scale: Dim,
        queries: tuple[T, ...],
        keys: tuple[T, T],
        running: tuple[T, T, T],
    ) -> tuple[T, T, T]:
        """Gradients of q, k and v added to running ones; ``queries`` are q, out, lse and the output's gradient."""
        dq, *travelling = running
        for step, block, home in ops.rotate(axis, keys, tuple(travelling)):
            spread = Spread(ops, queries, block, scale, dq, home)
            own = Part(mask=self._own(axis, mask, spread.tokens))
            dq, dk, dv = spread((own,)) if step == 0 else self.branch(ops, axis, mask, step, spread)
            home.depart(dk, dv)
        dk, dv = home.home()
        return dq, dk, dv

    def branch(self, ops: Vocabulary[T], axis: Axis, mask: Mask, step: Any, work: Work) -> Any:
        """The work that the mask leaves of a visiting block."""

        def of(parts: tuple[Part, ...], earlier: bool | None) -> Any:
            return work(parts if mask.documents is None else self._placed(ops, axis, mask, step, work, parts, earlier))

        if not mask.causal:
            return of((Part(),), None)
        return ops.when(step <= axis.rank, lambda: of(self.earlier, True), lambda: of(self.later, False))

    def spans(self, first: Dim, count: Dim, axis: Axis, n: Dim) -> tuple[Span, ...]:
        """Where the blocks of n tokens of ranks that follow each other are, stretch by stretch."""
        return ((first * n, (first + count) * n),)

    def _own(self, axis: Axis, mask: Mask, n: Dim) -> Mask:
        """The mask between a rank's own queries and keys."""
        spans = self.spans(axis.rank, 1, axis, n)
        return mask.at(spans, spans)

    def _placed(
        self,
        ops: Vocabulary[T],
        axis: Axis,
        mask: Mask,
        step: Any,
        work: Work,
        parts: tuple[Part, ...],
        earlier: bool | None,
    ) -> tuple[Part, ...]:
        """Parts of a visiting block with the documents that they lie in; no keys are cached."""
        rows, n = ops.visitors(axis, step, earlier), work.tokens
        queries = self.spans(axis.rank, 1, axis, n)
        keys = [self.spans(first, count, axis, n) for first, count in rows]
        calls = maximum(sum(count for _, count in rows), 1)  # of a loop that is never run, too

        def place(part: Part) -> Mask:
            seen = tuple(span for spans in keys for span in (spans[:1] if part.keys == "early" else spans))
            whole = Mask(documents=mask.documents)
            return whole.at(queries[1:] if part.queries == "late" else queries, seen, calls)

        return tuple(replace(part, mask=place(part)) for part in parts if part.keys != "cached")


class Work(Protocol):
    """What is done with parts of a visiting block.

    Attributes:
        tokens: a rank's queries.
    """

    @property
    def tokens(self) -> Dim: ...

    def __call__(self, parts: tuple[Part, ...]) -> Any: ...


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

    def __call__(self, parts: tuple[Part, ...]) -> tuple[Any, Any]:
        out, lse = self.out, self.lse
        for part in some(self.ops, parts, self.q, self.block[0]):
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

    def __call__(self, parts: tuple[Part, ...]) -> tuple[Any, Any, Any]:
        ops, found = self.ops, []
        for part in some(ops, parts, self.queries[0], self.block[0]):
            (q, out, lse, gradient), (k, v) = part.of(ops, self.queries, self.block)
            found.append((part, ops.attention_backward(q, k, v, out, lse, gradient, part.mask, self.scale)))
        dq, (dk, dv) = self.dq, self.home.arrive()
        for part, (bq, bk, bv) in found:
            dq = ops.add_into(dq, bq, 2, part.first_query(ops, self.queries[0]))
            dk, dv = ops.add_into(dk, bk, 2), ops.add_into(dv, bv, 2)
        return dq, dk, dv


ring = Ring()
