"""The delta rule with decay: S_t = (I - b_t k_t k_t^T) diag(exp g_t) S_{t-1} + b_t k_t v_t^T, o_t = q_t S_t.

``chunked`` writes a chunk's updates as K^T U, U = T (b V) - T (b K) S (Yang et al. 2024, arXiv 2406.06484, section 3.2;
with decay Yang et al. 2024, arXiv 2412.06464; per channel Kimi Linear, arXiv 2510.26692). ``recurrent`` goes token by
token. What a stretch of tokens does to the state is a matrix [d, d] for each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Tensors
from costmodel.dims import Dim
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.chunk_pairs import Decay, all_pairs
from costmodel.recurrences.matrix_states import MatrixStates

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

    q: T
    k: T
    v: T
    beta: T
    log_decay: T | None
    chunk: Dim
    kernel: str = "chunked"
    before_scan: ClassVar[int] = 2

    def streams(self) -> tuple[T, ...]:
        own = self.q, self.k, self.v, self.beta
        return own if self.log_decay is None else (*own, self.log_decay)

    def on(self, streams: Sequence[T], parameters: Sequence[T] = ()) -> Delta[T]:
        q, k, v, beta, *decay = streams
        return replace(self, q=q, k=k, v=v, beta=beta, log_decay=decay[0] if decay else None)

    def chunks(self, ops: Vocabulary[T]) -> Tensors[T]:
        """Scores, queries for the state before; T b K, T b V, keys that add to the state, its decay."""
        q, k, v, beta = (self.cut(ops, y) for y in (self.q, self.k, self.v, self.beta))
        running = None if self.log_decay is None else ops.cumsum(self.cut(ops, self.log_decay), 3)
        weighted = ops.mul(k, beta)
        own, scores = all_pairs(ops, (weighted, q), (k,), None if running is None else Decay(running))
        inverse = ops.triangular_inverse(own)
        values = ops.contract("bhnij,bhnje->bhnie", inverse, ops.mul(v, beta))
        late = k
        decay: Tensors[T] = ()
        if running is not None:
            b, h, n, _, d = ops.shape(running)
            last = ops.slice(running, 3, self.chunk - 1, 1)
            shrink = ops.map("exp", running)
            q, weighted = ops.mul(q, shrink), ops.mul(weighted, shrink)
            late = ops.mul(k, ops.map("exp", ops.map("sub", last, running)))
            decay = (ops.reshape(ops.map("exp", last), (b, h, n, d, 1)),)
        keys = ops.contract("bhnij,bhnjd->bhnid", inverse, weighted)
        return (scores, q, keys, values, late, *decay)

    @staticmethod
    def over_chunks(read: bool) -> Recurrence:
        """Over (the matrix of the tokens so far and) the state; hands out states before chunks and their updates."""

        def updates(ops: Vocabulary[Any], state: Any, chunk: Any) -> Any:
            return ops.map("sub", chunk[1], ops.contract("bhid,bhde->bhie", chunk[0], state))

        def advance(ops: Vocabulary[Any], states: Any, chunk: Any, _: Any) -> Any:
            keys, _values, late, *decay = chunk
            *matrix, state = states
            added = [ops.map("neg", ops.contract("bhid,bhde->bhie", keys, m)) for m in matrix]
            kept = [ops.mul(s, decay[0]) if decay else s for s in states]
            steps = (*added, updates(ops, state, chunk))
            return tuple(ops.add(s, ops.contract("bhid,bhie->bhde", late, u)) for s, u in zip(kept, steps, strict=True))

        def emit(ops: Vocabulary[Any], before: Any, after: Any, chunk: Any, _: Any) -> Any:
            return (before[-1], updates(ops, before[-1], chunk)) if read else ()

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


def step(ops: Vocabulary[T], state: T, token: tuple[T, T | None, T], log_decay: T | None) -> T:
    """The state [B, H, d, e] after one token k [B, H, d], v [B, H, e] (``None`` for zeros), beta [B, H, 1]."""
    k, v, beta = token
    if log_decay is not None:
        b, h, d = ops.shape(log_decay)
        state = ops.mul(state, ops.map("exp", ops.reshape(log_decay, (b, h, d, 1))))
    held = ops.contract("bhd,bhde->bhe", k, state)
    update = ops.mul(ops.map("neg", held) if v is None else ops.map("sub", v, held), beta)
    return ops.add(state, ops.contract("bhd,bhe->bhde", k, update))
