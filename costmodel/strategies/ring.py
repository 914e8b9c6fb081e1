"""Ring attention: keys and values go round, queries stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.pairs import Pairs
from costmodel.dims import Dim, divide
from costmodel.masks import Mask
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Travelling, Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, divides, only_fused, only_passes

T = TypeVar("T")

NO_MASK = Mask()


@dataclass(frozen=True)
class Part:
    """Which of a rank's queries need which keys of a visiting block, and the mask between them.

    Attributes:
        queries: ``all``, ``late`` (the second half), or ``rest`` (all but the first).
        keys: ``all``, ``early`` (without the second half), or ``rest`` (all but the last).
    """

    queries: str = "all"
    keys: str = "all"
    mask: Mask = NO_MASK

    def of(
        self, ops: Vocabulary[T], queries: tuple[T, ...], keys: tuple[T, ...]
    ) -> tuple[tuple[T, ...], tuple[T, ...]]:
        """The part, as views, of tensors along queries and of tensors along keys (both at dimension 2)."""
        first = self.first_query(ops, queries[0])
        if self.queries != "all":
            queries = tuple(ops.slice(x, 2, first, ops.shape(x)[2] - first) for x in queries)
        if self.keys != "all":
            n = ops.shape(keys[0])[2]
            seen = n - 1 if self.keys == "rest" else divide(n, 2)
            keys = tuple(ops.slice(x, 2, 0, seen) for x in keys)
        return queries, keys

    def first_query(self, ops: Vocabulary[T], q: T) -> Dim:
        if self.queries == "late":
            return divide(ops.shape(q)[2], 2)
        return 1 if self.queries == "rest" else 0


@dataclass(frozen=True)
class Ring(Strategy):
    """Contiguous blocks of keys and values pass every rank, each step hidden behind the attention of the last one.

    With a causal mask rank r works in r + 1 of the P steps, so the last rank sets the time: up to twice the balanced
    one (see ``zigzag``).
    """

    name: ClassVar[str] = "ring"
    title: ClassVar[str] = "ring attention, contiguous blocks"
    source: ClassVar[str] = "Liu et al. 2023, arXiv 2310.01889; backward as in zhuzilin/ring-flash-attention"
    axes: ClassVar[tuple[str, ...]] = ("context",)

    #: What is done with a block of an earlier rank, and of a later one, under a causal mask.
    earlier: ClassVar[Part] = Part()
    later: ClassVar[Part | None] = None

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield only_passes(at, "forward", "train", "prefill")
        yield only_fused(at)
        yield Requirement(
            at.window is None,
            "a ring takes every key past every rank, which a sliding window does not need: use window-halo",
        )
        yield divides(
            at.length, at.context * at.tensor, "{length} tokens do not divide over {context} x {tensor} ranks"
        )

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
        out: Any = None
        lse: Any = None
        for step, block, _ in ops.rotate(axis, (k, v)):
            if step == 0:
                first, lse = ops.attention(q, block[0], block[1], mask, scale)
                out = ops.cast(first, "accumulate")
            else:
                out, lse = self._branch(ops, axis, mask, step, _Absorb(ops, q, block, scale, out, lse))
        result: T = ops.cast(out, "model")
        return result, (q, k, v, result, lse)

    def _backward(
        self, ops: Vocabulary[T], axis: Axis, mask: Mask, scale: Dim, saved: tuple[T, ...], gradient: T
    ) -> tuple[T, ...]:
        q, k, v, out, lse = saved
        dq = ops.zeros_like(q, "accumulate")
        travelling = (ops.zeros_like(k, "gradient"), ops.zeros_like(v, "gradient"))
        for step, block, home in ops.rotate(axis, (k, v), travelling):
            spread = _Spread(ops, (q, out, lse, gradient), block, scale, dq, home)
            dq, dk, dv = spread(Part(mask=mask)) if step == 0 else self._branch(ops, axis, mask, step, spread)
            home.depart(dk, dv)
        dk, dv = home.home()
        return ops.cast(dq, "model"), ops.cast(dk, "model"), ops.cast(dv, "model")

    def _branch(self, ops: Vocabulary[T], axis: Axis, mask: Mask, step: Any, work: Callable[[Part | None], Any]) -> Any:
        """The work that the mask leaves of a visiting block."""
        if not mask.causal:
            return work(Part())
        return ops.when(step <= axis.rank, lambda: work(self.earlier), lambda: work(self.later))


@dataclass(frozen=True)
class _Absorb:
    """Forward work of one step: attention over a part of the visiting block, merged into the running output."""

    ops: Vocabulary[Any]
    q: Any
    block: tuple[Any, ...]
    scale: Dim
    out: Any
    lse: Any

    def __call__(self, part: Part | None) -> tuple[Any, Any]:
        if part is None:
            return self.out, self.lse
        (q,), (k, v) = part.of(self.ops, (self.q,), self.block)
        block_out, block_lse = self.ops.attention(q, k, v, part.mask, self.scale)
        return self.ops.merge(self.out, self.lse, block_out, block_lse, part.first_query(self.ops, self.q))


@dataclass(frozen=True)
class _Spread:
    """Backward work of one step: gradients of a part of the queries and of the visiting block, added up."""

    ops: Vocabulary[Any]
    queries: tuple[Any, ...]  #: q, out, lse and the output's gradient
    block: tuple[Any, ...]
    scale: Dim
    dq: Any
    home: Travelling[Any]

    def __call__(self, part: Part | None) -> tuple[Any, Any, Any]:
        if part is None:
            return (self.dq, *self.home.arrive())
        ops = self.ops
        (q, out, lse, gradient), (k, v) = part.of(ops, self.queries, self.block)
        bq, bk, bv = ops.attention_backward(q, k, v, out, lse, gradient, part.mask, self.scale)
        dk, dv = self.home.arrive()
        dq = ops.add_into(self.dq, bq, 2, part.first_query(ops, self.queries[0]))
        return dq, ops.add_into(dk, bk, 2), ops.add_into(dv, bv, 2)


ring = Ring()
