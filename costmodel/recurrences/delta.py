"""The delta rule with decay: S_t = (I - b_t k_t k_t^T) diag(exp g_t) S_{t-1} + b_t k_t v_t^T, o_t = q_t S_t.

``chunked`` writes a chunk's updates as K^T U, U = T (b V) - T (b K) S (Yang et al. 2024, arXiv 2406.06484, section 3.2;
with decay Yang et al. 2024, arXiv 2412.06464; per channel Kimi Linear, arXiv 2510.26692). ``recurrent`` goes token by
token. What a stretch of tokens does to the state is a matrix [d, d] for each head.

``chunked`` has the kernels of flash-linear-attention (ops/gated_delta_rule/chunk.py, ops/kda/chunk.py): T b K and T b V
of all chunks, a scan that writes states before chunks and updates, and the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from costmodel.carries.state import Tensors
from costmodel.dims import Dim, is_number
from costmodel.documents import Packed
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.chunk_pairs import CAUSAL, Decay, all_pairs, in_chunks
from costmodel.recurrences.matrix_states import Chunked, MatrixStates
from costmodel.recurrences.resets import fades, to_the_end, with_resets

T = TypeVar("T")


@dataclass(frozen=True)
class Delta(MatrixStates[T]):
    """The recurrence of q, k [B, H, n, d] and v [B, H, n, e]; the state is [B, H, d, e].

    Attributes:
        beta: [B, H, n, 1], how much of what the state holds for a key is replaced.
        log_decay: [B, H, n, 1 or d], or ``None`` for none.
        chunk: tokens of a chunk.
        kernel: one of ``matrix_states.KERNELS``.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v", "beta", "log_decay")

    q: T
    k: T
    v: T
    beta: T
    log_decay: T | None
    chunk: Dim
    kernel: str = "chunked"

    def tokens(self, ops: Vocabulary[T]) -> Tensors[T]:
        faded = with_resets(ops, self.log_decay, self.packed, self.v)
        own = self.q, self.k, self.v, self.beta
        return own if faded is None else (*own, faded)

    def chunks(self, ops: Vocabulary[T]) -> Chunked[T]:
        """Of the scan: T b K, T b V, keys, sums of decay."""
        q, k, v, beta = (in_chunks(ops, y, self.chunk) for y in (self.q, self.k, self.v, self.beta))
        sums = () if self.log_decay is None else (ops.cumsum(in_chunks(ops, self.log_decay, self.chunk), 3),)
        faded = with_resets(ops, self.log_decay, self.packed, self.v)
        scanned: Tensors[T] = sums
        read: Tensors[T] = ()
        if faded is not None and self.packed is not None:
            own = fades(ops, in_chunks(ops, faded, self.chunk))
            scanned, read = (own.left, own.whole), (own.read,)
        queries = () if not sums or is_number(ops.shape(sums[0])[4], 1) else (q,)
        body = partial(_chunks, sums=len(sums), read=len(read), packed=self.packed)
        keys, values, *scores = ops.fused("chunks", body, k, v, beta, *sums, *read, *queries, family="scan")
        return Chunked((keys, values, k, *scanned), _Own(q, k, sums, read, tuple(scores)))

    def values(self, ops: Vocabulary[T], chunked: Chunked[T], befores: T, updates: T) -> T:
        own: _Own[T] = chunked.own
        if own.scores:
            body, given = _values, (own.scores[0], own.q, *(own.read or own.sums))
        else:
            body = partial(_values_of_pairs, sums=len(own.sums), packed=self.packed)
            given = own.k, own.q, *own.sums, *own.read
        result: T = ops.fused("outputs of chunks", body, updates, befores, *given, family="scan")
        return result

    @staticmethod
    def over_chunks(read: bool) -> Recurrence:
        """Over (the matrix of the tokens so far and) the state; hands out states before chunks and their updates."""

        def updates(ops: Vocabulary[Any], state: Any, chunk: Any) -> Any:
            return ops.map("sub", chunk[1], ops.contract("bhid,bhde->bhie", chunk[0], state))

        def advance(ops: Vocabulary[Any], states: Any, chunk: Any, _: Any) -> Any:
            keys, _values, late, *sums = chunk
            *matrix, state = states
            steps = [ops.map("neg", ops.contract("bhid,bhde->bhie", keys, m)) for m in matrix]
            steps.append(updates(ops, state, chunk))
            if sums:
                left, whole = to_the_end(ops, tuple(sums))
                b, h, _, d = ops.shape(whole)
                late = ops.mul(late, ops.map("exp", left))
                decay = ops.map("exp", ops.reshape(whole, (b, h, d, 1)))
                states = [ops.mul(s, decay) for s in states]
            return tuple(
                ops.add(s, ops.contract("bhid,bhie->bhde", late, u)) for s, u in zip(states, steps, strict=True)
            )

        def emit(ops: Vocabulary[Any], before: Any, after: Any, chunk: Any, _: Any) -> Any:
            return (ops.cast(before[-1], "model"), updates(ops, before[-1], chunk)) if read else ()

        return Recurrence("states of chunks", advance, emit)

    @staticmethod
    def over_tokens(read: bool) -> Recurrence:
        def advance(ops: Vocabulary[Any], states: Any, token: Any, _: Any) -> Any:
            _, k, v, beta, *decay = token
            return tuple(
                step(ops, s, (k, v if place == len(states) - 1 else None, beta), decay[0] if decay else None)
                for place, s in enumerate(states)
            )

        def emit(ops: Vocabulary[Any], before: Any, after: Any, token: Any, _: Any) -> Any:
            return (ops.contract("bhd,bhde->bhe", token[0], after[-1]),) if read else ()

        return Recurrence("delta rule of tokens", advance, emit, "recurrence")


@dataclass(frozen=True)
class _Own(Generic[T]):
    """What the outputs of chunks are made of: queries, keys, sums of decay of pairs if there is any; where states are
    reset, other sums by which they are read; with one decay a channel, scores.
    """

    q: T
    k: T
    sums: Tensors[T]
    read: Tensors[T]
    scores: Tensors[T]


def _chunks(
    ops: Vocabulary[T], k: T, v: T, beta: T, *more: T, sums: int, read: int, packed: Packed | None
) -> tuple[T, ...]:
    """T b K and T b V [B, H, N, C, d or e]; scores of queries if given.

    Args:
        more: ``sums`` of decay and ``read`` of those by which states are read (see ``_Own``), and queries.
    """
    running, reading, queries = more[:sums], more[sums : sums + read], more[sums + read :]
    weighted = ops.mul(k, beta)
    decay = Decay(*running) if running else None
    own, *scores = all_pairs(ops, (weighted, *queries), (k,), decay, packed)
    inverse = ops.triangular_inverse(own)
    values = ops.contract("bhnij,bhnje->bhnie", inverse, ops.mul(v, beta))
    for faded in reading or running:
        weighted = ops.mul(weighted, ops.map("exp", faded))
    return ops.contract("bhnij,bhnjd->bhnid", inverse, weighted), values, *scores


def _values_of_pairs(
    ops: Vocabulary[T], updates: T, befores: T, k: T, q: T, *more: T, sums: int, packed: Packed | None
) -> T:
    """Values of chunks, of pairs with no decay, or with one a head; ``more`` are sums and read of ``_Own``."""
    running, read = more[:sums], more[sums:]
    (scores,) = all_pairs(ops, (q,), (k,), Decay(*running) if running else None, packed)
    return _values(ops, updates, befores, scores, q, *(read or running))


def _values(ops: Vocabulary[T], updates: T, befores: T, scores: T, q: T, *running: T) -> T:
    """Values of chunks, of their scores [B, H, N, C, C] and of the states before them."""
    for sums in running:
        q = ops.mul(q, ops.map("exp", sums))
    within = ops.contract("bhnij,bhnje->bhnie", scores, updates, CAUSAL, "ij")
    return ops.add(within, ops.contract("bhnid,bhnde->bhnie", q, befores))


def step(ops: Vocabulary[T], state: T, token: tuple[T, T | None, T], log_decay: T | None) -> T:
    """The state [B, H, d, e] after one token k [B, H, d], v [B, H, e] (``None`` for zeros), beta [B, H, 1]."""
    k, v, beta = token
    if log_decay is not None:
        b, h, d = ops.shape(log_decay)
        state = ops.mul(state, ops.map("exp", ops.reshape(log_decay, (b, h, d, 1))))
    held = ops.contract("bhd,bhde->bhe", k, state)
    update = ops.mul(ops.map("neg", held) if v is None else ops.map("sub", v, held), beta)
    return ops.add(state, ops.contract("bhd,bhe->bhde", k, update))
