"""A transition diagonal plus low rank: S_t = (diag(exp g_t) - b_t z_t^T) S_{t-1} + k_t v_t^T, o_t = q_t S_t.

``chunked`` writes a chunk's removals as B^T U, U = -T (A V + Z S), with T the inverse of a triangular matrix
(flash-linear-attention ops/generalized_delta_rule/dplr/naive.py, where a = -z); ``recurrent`` goes token by token. What
a stretch of tokens does to the state is a matrix [d, d] for each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from costmodel.carries.state import Affine, State, Tensors
from costmodel.dims import Dim, divide
from costmodel.masks import Mask
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.chunk_pairs import Decay, all_pairs
from costmodel.recurrences.delta import identity

T = TypeVar("T")

KERNELS = ("chunked", "recurrent")


@dataclass(frozen=True)
class DiagonalLowRank(State[T]):
    """The recurrence of q, k, z, b [B, H, n, d] and v [B, H, n, e]; the state is [B, H, d, e].

    Attributes:
        z, b: what is read of the state, and in whose direction that is taken away.
        log_decay: [B, H, n, d].
        chunk: tokens of a chunk.
        kernel: one of ``KERNELS``.
    """

    q: T
    k: T
    v: T
    z: T
    b: T
    log_decay: T
    chunk: Dim
    kernel: str = "chunked"

    def streams(self) -> tuple[T, ...]:
        return self.q, self.k, self.v, self.z, self.b, self.log_decay

    def on(self, streams: Sequence[T], parameters: Sequence[T] = ()) -> DiagonalLowRank[T]:
        q, k, v, z, b, log_decay = streams
        return replace(self, q=q, k=k, v=v, z=z, b=b, log_decay=log_decay)

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        batch, heads, _, d = ops.shape(self.k)
        return (ops.zeros((batch, heads, d, ops.shape(self.v)[3]), "accumulate"),)

    def prepare(self, ops: Vocabulary[T]) -> Tensors[T]:
        return () if self.kernel == "recurrent" else _chunks(ops, self)

    def summary(self, ops: Vocabulary[T], prepared: Tensors[T]) -> Affine[T]:
        start = (identity(ops, self.k), *self.initial(ops))
        if self.kernel == "recurrent":
            (matrix, state), _ = ops.scan(_tokens(read=False), start, self.streams(), axis=2)
        else:
            (matrix, state), _ = ops.scan(_over_chunks(read=False), start, prepared[3:], axis=2)
        return Affine((matrix,), (state,))

    def move(self, ops: Vocabulary[T], transition: Tensors[T], state: Tensors[T]) -> Tensors[T]:
        return (ops.contract("bhxd,bhde->bhxe", transition[0], state[0]),)

    def transposed(self, ops: Vocabulary[T], transition: Tensors[T]) -> Tensors[T]:
        return (ops.permute(transition[0], (0, 1, 3, 2)),)

    def outputs(self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T]) -> T:
        if self.kernel == "recurrent":
            return ops.scan(_tokens(read=True), state, self.streams(), axis=2)[1][0]
        within, scores, queries = prepared[:3]
        _, (befores, removed) = ops.scan(_over_chunks(read=True), state, prepared[3:], axis=2)
        within = ops.add(within, ops.contract("bhnij,bhnje->bhnie", scores, removed, Mask(causal=True), "ij"))
        before = ops.contract("bhnid,bhnde->bhnie", queries, befores)
        return ops.reshape(ops.add(within, before), ops.shape(self.v))


def _chunks(ops: Vocabulary[T], x: DiagonalLowRank[T]) -> Tensors[T]:
    """Of each chunk: values of its own pairs, scores of what is removed, queries for the state before; then the scan's.

    These are T Z, T A V, the directions of what is removed, keys, values, and the decay of the chunk.
    """

    def cut(y: T) -> T:
        b, h, n, d = ops.shape(y)
        return ops.reshape(y, (b, h, divide(n, x.chunk), x.chunk, d))

    q, k, v, z, b, log_decay = (cut(y) for y in x.streams())
    running, before = ops.cumsum(log_decay, 3), ops.cumsum(log_decay, 3, exclusive=True)
    last = ops.slice(running, 3, x.chunk - 1, 1)
    left = ops.map("exp", ops.map("sub", last, running))
    reading = ops.mul(z, ops.map("exp", before))
    scores, removals = all_pairs(ops, (q,), (k, b), Decay(running))
    seen, own = all_pairs(ops, (z,), (k, b), Decay(running, before))
    inverse = ops.triangular_inverse(own)
    batch, heads, count, _, d = ops.shape(running)
    return (
        _apply(ops, scores, v),
        removals,
        ops.mul(q, ops.map("exp", running)),
        _apply(ops, inverse, reading),
        _apply(ops, inverse, _apply(ops, seen, v)),
        ops.mul(b, left),
        ops.mul(k, left),
        v,
        ops.reshape(ops.map("exp", last), (batch, heads, count, d, 1)),
    )


def _apply(ops: Vocabulary[T], pairs: T, values: T) -> T:
    return ops.contract("bhnij,bhnje->bhnie", pairs, values, Mask(causal=True), "ij")


def _over_chunks(read: bool) -> Recurrence:
    """Over (the matrix of the tokens so far and) the state; hands out states before chunks and what these remove."""

    def removed(ops: Vocabulary[Any], state: Any, chunk: Any) -> Any:
        reading, held, *_ = chunk
        return ops.map("neg", ops.add(ops.contract("bhid,bhde->bhie", reading, state), held))

    def advance(ops: Vocabulary[Any], states: Any, chunk: Any, _: Any) -> Any:
        reading, _held, directions, keys, values, decay = chunk
        *matrix, state = states
        steps = [ops.map("neg", ops.contract("bhid,bhde->bhie", reading, m)) for m in matrix]
        after = [
            ops.add(ops.mul(s, decay), ops.contract("bhid,bhie->bhde", directions, step))
            for s, step in zip(states, (*steps, removed(ops, state, chunk)), strict=True)
        ]
        return (*after[:-1], ops.add(after[-1], ops.contract("bhid,bhie->bhde", keys, values)))

    def emit(ops: Vocabulary[Any], before: Any, after: Any, chunk: Any, _: Any) -> Any:
        return (before[-1], removed(ops, before[-1], chunk)) if read else ()

    return Recurrence("states of chunks", advance, emit)


def _tokens(read: bool) -> Recurrence:
    def advance(ops: Vocabulary[Any], states: Any, token: Any, _: Any) -> Any:
        _, k, v, z, b, log_decay = token
        *matrix, state = states
        own = [moved(ops, m, z, b, log_decay) for m in matrix]
        return (*own, step(ops, state, (k, v, z, b, log_decay)))

    def emit(ops: Vocabulary[Any], before: Any, after: Any, token: Any, _: Any) -> Any:
        return (ops.contract("bhd,bhde->bhe", token[0], after[-1]),) if read else ()

    return Recurrence("recurrence of tokens", advance, emit, "recurrence")


def moved(ops: Vocabulary[T], state: T, z: T, b: T, log_decay: T) -> T:
    """(diag(exp log_decay) - b z^T) applied to a state [B, H, d, e]; the others are [B, H, d]."""
    kept = ops.mul(state, ops.map("exp", ops.reshape(log_decay, (*ops.shape(log_decay), 1))))
    held = ops.contract("bhd,bhde->bhe", z, state)
    return ops.map("sub", kept, ops.contract("bhd,bhe->bhde", b, held))


def step(ops: Vocabulary[T], state: T, token: tuple[T, T, T, T, T]) -> T:
    """The state [B, H, d, e] after one token k [B, H, d], v [B, H, e], z, b and log_decay [B, H, d]."""
    k, v, z, b, log_decay = token
    return ops.add(moved(ops, state, z, b, log_decay), ops.contract("bhd,bhe->bhde", k, v))
