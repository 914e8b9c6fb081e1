"""A transition diagonal plus low rank: S_t = (diag(exp g_t) - b_t z_t^T) S_{t-1} + k_t v_t^T, o_t = q_t S_t.

``chunked`` writes a chunk's removals as B^T U, U = -T (A V + Z S), with T the inverse of a triangular matrix
(flash-linear-attention ops/generalized_delta_rule/dplr/naive.py, where a = -z), and has the kernels of chunk.py there;
``recurrent`` goes token by token. What a stretch of tokens does to the state is a matrix [d, d] for each head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Tensors
from costmodel.dims import Dim
from costmodel.documents import Packed
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.chunk_pairs import CAUSAL, Decay, all_pairs, in_chunks
from costmodel.recurrences.matrix_states import Chunked, MatrixStates
from costmodel.recurrences.resets import fades, reset, with_resets

T = TypeVar("T")


@dataclass(frozen=True)
class DiagonalLowRank(MatrixStates[T]):
    """The recurrence of q, k, z, b [B, H, n, d] and v [B, H, n, e]; the state is [B, H, d, e].

    Attributes:
        z, b: what is read of the state, and in whose direction that is taken away.
        log_decay: [B, H, n, d].
        chunk: tokens of a chunk.
        kernel: one of ``matrix_states.KERNELS``.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v", "z", "b", "log_decay")

    q: T
    k: T
    v: T
    z: T
    b: T
    log_decay: T
    chunk: Dim
    kernel: str = "chunked"

    def tokens(self, ops: Vocabulary[T]) -> Tensors[T]:
        """Of the first token of a document z is 0, as it is of the state before."""
        faded = with_resets(ops, self.log_decay, self.packed, self.v)
        assert faded is not None
        return self.q, self.k, self.v, reset(ops, self.z, self.packed), self.b, faded

    def chunks(self, ops: Vocabulary[T]) -> Chunked[T]:
        """Of the scan: T Z, T A V, directions of what is removed, keys, values, decay."""
        z = reset(ops, self.z, self.packed)
        q, k, v, z, b, log_decay = (
            in_chunks(ops, y, self.chunk) for y in (self.q, self.k, self.v, z, self.b, self.log_decay)
        )
        sums: Tensors[T] = ops.cumsum(log_decay, 3), ops.cumsum(log_decay, 3, exclusive=True)
        if self.packed is not None:
            own = fades(ops, in_chunks(ops, reset(ops, self.log_decay, self.packed, "-inf"), self.chunk), early=True)
            assert own.early is not None
            sums = *sums, own.read, own.early, own.left, own.whole
        scores, removals, seen, within, queries, keys, directions, reading, decay = ops.fused(
            "pairs of chunks", partial(_pairs, packed=self.packed), q, k, z, b, *sums, family="scan"
        )
        reading, held = ops.fused("chunks", _chunks, within, seen, reading, v, family="scan")
        return Chunked((reading, held, directions, keys, v, decay), (scores, removals, queries))

    def values(self, ops: Vocabulary[T], chunked: Chunked[T], befores: T, updates: T) -> T:
        v = chunked.scanned[4]
        result: T = ops.fused("outputs of chunks", _values, updates, befores, v, *chunked.own, family="scan")
        return result

    @staticmethod
    def over_chunks(read: bool) -> Recurrence:
        """Over (the matrix of the tokens so far and) the state; hands out states before, and what is removed."""

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
            return (ops.cast(before[-1], "model"), removed(ops, before[-1], chunk)) if read else ()

        return Recurrence("states of chunks", advance, emit)

    @staticmethod
    def over_tokens(read: bool) -> Recurrence:
        def advance(ops: Vocabulary[Any], states: Any, token: Any, _: Any) -> Any:
            _, k, v, z, b, log_decay = token
            *matrix, state = states
            own = [moved(ops, m, z, b, log_decay) for m in matrix]
            return (*own, step(ops, state, (k, v, z, b, log_decay)))

        def emit(ops: Vocabulary[Any], before: Any, after: Any, token: Any, _: Any) -> Any:
            return (ops.contract("bhd,bhde->bhe", token[0], after[-1]),) if read else ()

        return Recurrence("recurrence of tokens", advance, emit, "recurrence")


def _pairs(
    ops: Vocabulary[T], q: T, k: T, z: T, b: T, running: T, before: T, *resets: T, packed: Packed | None
) -> tuple[T, ...]:
    """Pairs of q and z with k and b; queries, keys, directions and z with decay to the ends of chunks; its whole.

    Args:
        resets: sums of decay with resets, if there are any: ``read``, ``early``, ``left`` and ``whole`` of ``Fades``.
    """
    batch, heads, count, chunk, d = ops.shape(running)
    if resets:
        read, early, left, last = resets
    else:
        last = ops.slice(running, 3, chunk - 1, 1)
        read, early, left = running, before, ops.map("sub", last, running)
    left = ops.map("exp", left)
    return (
        *all_pairs(ops, (q,), (k, b), Decay(running), packed),
        *all_pairs(ops, (z,), (k, b), Decay(running, before), packed),
        ops.mul(q, ops.map("exp", read)),
        ops.mul(k, left),
        ops.mul(b, left),
        ops.mul(z, ops.map("exp", early)),
        ops.reshape(ops.map("exp", last), (batch, heads, count, d, 1)),
    )


def _chunks(ops: Vocabulary[T], own: T, seen: T, reading: T, v: T) -> tuple[T, T]:
    """T Z and T A V [B, H, N, C, d or e]."""
    inverse = ops.triangular_inverse(own)
    return _apply(ops, inverse, reading), _apply(ops, inverse, _apply(ops, seen, v))


def _values(ops: Vocabulary[T], updates: T, befores: T, v: T, scores: T, removals: T, queries: T) -> T:
    """Values of chunks, of their own pairs, of what is removed, and of the states before them."""
    within = ops.add(_apply(ops, scores, v), _apply(ops, removals, updates))
    return ops.add(within, ops.contract("bhnid,bhnde->bhnie", queries, befores))


def _apply(ops: Vocabulary[T], pairs: T, values: T) -> T:
    return ops.contract("bhnij,bhnje->bhnie", pairs, values, CAUSAL, "ij")


def moved(ops: Vocabulary[T], state: T, z: T, b: T, log_decay: T) -> T:
    """(diag(exp log_decay) - b z^T) applied to a state [B, H, d, e]; the others are [B, H, d]."""
    kept = ops.mul(state, ops.map("exp", ops.reshape(log_decay, (*ops.shape(log_decay), 1))))
    held = ops.contract("bhd,bhde->bhe", z, state)
    return ops.map("sub", kept, ops.contract("bhd,bhe->bhde", b, held))


def step(ops: Vocabulary[T], state: T, token: tuple[T, T, T, T, T]) -> T:
    """The state [B, H, d, e] after one token k [B, H, d], v [B, H, e], z, b and log_decay [B, H, d]."""
    k, v, z, b, log_decay = token
    return ops.add(moved(ops, state, z, b, log_decay), ops.contract("bhd,bhe->bhde", k, v))
