"""Pass-Q: queries go round, keys and values stay, and partial results come back by all-to-all.

In a prefill a rank has some of the tokens; in decoding, the tokens of some of the sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from costmodel.carries.pairs import Pairs, merged
from costmodel.dims import Dim
from costmodel.masks import Mask
from costmodel.ops.layout import Fill
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategies.ring import Course, Part, Visit, some
from costmodel.strategies.zigzag import zigzag
from costmodel.strategy import (
    Requirement,
    Situation,
    Strategy,
    divides,
    equal_cache,
    equal_halves,
    only_fused,
    only_passes,
)

T = TypeVar("T")


class PassQ(Strategy):
    """A rank sends B n H d elements of queries a step, not the 2 B (n + T / P) H_kv d of keys and values.

    That is less after T cached tokens where n P / (n P + T) < 2 H_kv / H (equation 1 of the source), or with as many
    key-value heads as query heads. The exchange of partial outputs and log-sum-exps at the end hides behind nothing.
    For inference: it has no backward pass.
    """

    name: ClassVar[str] = "pass-q"
    title: ClassVar[str] = "pass-Q: a ring of queries, all-to-all of partial outputs"
    source: ClassVar[str] = "Yang et al. 2024, arXiv 2411.01783, section 3.4 and algorithm 3"
    axes: ClassVar[tuple[str, ...]] = ("context",)
    layout: ClassVar[str] = "zigzag"
    extends: ClassVar[bool] = True
    documents: ClassVar[bool] = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield only_passes(at, "forward", "prefill")
        yield only_fused(at)
        yield Requirement(
            at.window is None, "it takes every query past every key, which a sliding window does not need"
        )
        yield equal_halves(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Pairs[T]) -> T:
        axis = axes["context"]
        outs, lses = _room(ops, carry, axis)
        course, n = Course(axis, carry.mask, carry.scale, axis), ops.shape(carry.q)[2]

        def parts(step: Any, own: tuple[Part, ...], earlier: bool | None) -> tuple[Part, ...]:
            return _placed(Visit(zigzag, course, ops.visitors(axis, step, earlier), earlier), own, n)

        for step, (q,), _ in ops.rotate(axis, (carry.q,)):
            answer = _Answer(ops, q, carry, (outs, lses), ops.visiting(axis, step))
            if step == 0:
                outs, lses = answer((Part(mask=zigzag.own(course, n)),))
            elif not carry.mask.causal:
                outs, lses = answer(parts(step, (Part(),), None))
            else:  # queries of an earlier rank meet keys of a later one, and the other way round
                early, late = parts(step, zigzag.later, True), parts(step, zigzag.earlier, False)
                outs, lses = ops.when(step <= axis.rank, lambda: answer(early), lambda: answer(late))  # noqa: B023
        return merged(ops, *(ops.all_to_all(x, axis, 0, 0) for x in (outs, lses)))[0]


class PassQDecode(Strategy):
    """Each rank has the queries of B / P sequences, and of every sequence its part of the cache.

    Queries go round, and meet the keys of their sequences on every rank. A rank sends (P - 1) / P B H d elements of
    queries and as many of outputs, with their log-sum-exps: in bf16 half of what ``tree`` does, in as many messages,
    and projections and feed-forward are of B / P sequences. It takes a batch of at least P.
    """

    name: ClassVar[str] = "pass-q-decode"
    title: ClassVar[str] = "pass-Q decoding: sequences dealt out, a ring of queries, all-to-all of partial outputs"
    source: ClassVar[str] = "Yang et al. 2024, arXiv 2411.01783, algorithm 4: batched ring pass-Q decode"
    axes: ClassVar[tuple[str, ...]] = ("context",)
    deals: ClassVar[bool] = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield only_passes(at, "decode")
        yield only_fused(at)
        yield equal_cache(at)
        reason = "a batch of {batch} does not divide over {data} x {context} ranks, which each decode some of it"
        yield divides(at.batch, at.data * at.context, reason)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Pairs[T]) -> T:
        axis, kept = axes["context"], _room(ops, carry, axes["context"])
        b = ops.shape(carry.q)[0]
        for step, (q,), _ in ops.rotate(axis, (carry.q,)):
            owner = ops.visiting(axis, step)
            k, v = (ops.slice(x, 0, owner * b, b) for x in (carry.k, carry.v))
            _write(ops, kept, owner, ops.attention(q, k, v, Mask(), carry.scale), 0)
        return merged(ops, *(ops.all_to_all(x, axis, 0, 0) for x in kept))[0]


def _placed(visit: Visit, parts: tuple[Part, ...], n: Dim) -> tuple[Part, ...]:
    """Parts of n visiting queries and of a rank's keys, with the documents that they lie in; no keys are cached."""
    line = visit.course.line
    if visit.course.mask.documents is None:
        return parts
    keys = zigzag.spans(line.rank, 1, line, n)
    queries = [zigzag.spans(first, count, line, n) for first, count in visit.rows]

    def place(part: Part) -> Mask:
        asking = tuple(span for spans in queries for span in (spans[1:] if part.queries == "late" else spans))
        return visit.unruled.at(asking, keys[:1] if part.keys == "early" else keys, visit.calls)

    return tuple(replace(part, mask=place(part)) for part in parts if part.keys != "cached")


def _room(ops: Vocabulary[T], carry: Pairs[T], axis: Axis) -> tuple[T, T]:
    """For outputs [P, B, H, n, e] of every rank's queries and their log-sum-exps [P, B, H, n], of no key so far."""
    b, h, n, _ = ops.shape(carry.q)
    unseen = Fill((axis.size, b, h, n), "accumulate", ops.width("accumulate"), -math.inf)
    return ops.zeros((axis.size, b, h, n, ops.shape(carry.v)[3]), "model"), ops.apply(unseen)[0]


def _write(ops: Vocabulary[T], kept: tuple[T, T], owner: Dim, found: tuple[T, T], first: Dim) -> None:
    """Outputs and log-sum-exps of a rank's queries, from the first one on, where they are kept for it."""
    for whole, part in zip(kept, found, strict=True):
        ops.write(ops.reshape(ops.slice(whole, 0, owner, 1), ops.shape(whole)[1:]), part, 2, first)


@dataclass(frozen=True)
class _Answer:
    """Work of one step: attention of parts of the visiting queries, written where it is kept for their rank."""

    ops: Vocabulary[Any]
    q: Any
    carry: Pairs[Any]
    kept: tuple[Any, Any]  #: outputs [P, B, H, n, e] and log-sum-exps [P, B, H, n]
    owner: Dim

    def __call__(self, parts: tuple[Part, ...]) -> tuple[Any, Any]:
        ops = self.ops
        for part in some(ops, parts, self.q, self.carry.k):
            (q,), (k, v) = part.of(ops, (self.q,), (self.carry.k, self.carry.v))
            found = ops.attention(q, k, v, part.mask, self.carry.scale)
            _write(ops, self.kept, self.owner, found, part.first_query(ops, self.q))
        return self.kept


pass_q = PassQ()
pass_q_decode = PassQDecode()
