"""Linear attention with R keys, queries and values a token: S_t = exp(g_t) S_{t-1} + sum over r of k_tr v_tr^T.

o_ts = q_ts S_t for each of the R queries; decay is one number a head. Products with the state are of matrices of R
rows, so that a step does R times the work on a state that is as large as with one (Mamba-3, arXiv 2603.15569, its
multi-input multi-output form). Two implementations: ``chunked`` (within a chunk, pairs of all keys with all queries)
and ``recurrent`` (token by token, the state on chip).
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
from costmodel.recurrences.chunk_pairs import Decay, decays_of_pairs
from costmodel.recurrences.gated import states_of_chunks

T = TypeVar("T")

CAUSAL = Mask(causal=True)


@dataclass(frozen=True)
class MultiInput(State[T]):
    """The recurrence of q, k [B, H, n, R, d] and v [B, H, n, R, e]; mixed values are [B, H, n, R e].

    Attributes:
        log_decay: [B, H, n, 1].
        chunk: tokens of a chunk.
        kernel: ``"chunked"`` or ``"recurrent"``.
    """

    q: T
    k: T
    v: T
    log_decay: T
    chunk: Dim
    kernel: str = "chunked"

    def streams(self) -> tuple[T, ...]:
        return self.q, self.k, self.v, self.log_decay

    def on(self, streams: Sequence[T], parameters: Sequence[T] = ()) -> MultiInput[T]:
        q, k, v, log_decay = streams
        return replace(self, q=q, k=k, v=v, log_decay=log_decay)

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        b, h, _, _, e = ops.shape(self.v)
        return (ops.zeros((b, h, ops.shape(self.k)[4], e), "accumulate"),)

    def prepare(self, ops: Vocabulary[T]) -> Tensors[T]:
        """Of each chunk: values of its own pairs, queries for the state before, what it adds to that, its decay."""
        if self.kernel == "recurrent":
            return ()

        def cut(y: T) -> T:
            b, h, n, *others = ops.shape(y)
            return ops.reshape(y, (b, h, divide(n, self.chunk), self.chunk, *others))

        q, k, v, log_decay = (cut(y) for y in self.streams())
        running = ops.cumsum(log_decay, 3)
        b, h, n, c, _ = ops.shape(running)
        last = ops.slice(running, 3, c - 1, 1)
        late = ops.mul(k, _of_rows(ops, ops.map("exp", ops.map("sub", last, running))))
        added = ops.cast(ops.contract("bhnird,bhnire->bhnde", late, v), "accumulate")
        early = ops.mul(q, _of_rows(ops, ops.map("exp", running)))
        scores = ops.contract("bhnisd,bhnjrd->bhnsrij", q, k, CAUSAL, "ij")
        decays = ops.reshape(decays_of_pairs(ops, Decay(running)), (b, h, n, 1, 1, c, c))
        within = ops.contract("bhnsrij,bhnjre->bhnise", ops.mul(scores, decays), v, CAUSAL, "ij")
        return within, early, added, ops.reshape(ops.map("exp", last), (b, h, n, 1, 1))

    def summary(self, ops: Vocabulary[T], prepared: Tensors[T]) -> Affine[T]:
        (state,), _ = self._scan(ops, prepared, self.initial(ops), read=False)
        decay = ops.map("exp", ops.sum(self.log_decay, (2,)))
        return Affine((decay,), (state,))

    def outputs(self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T]) -> T:
        _, (handed,) = self._scan(ops, prepared, state, read=True)
        b, h, n, r, e = ops.shape(self.v)
        if self.kernel == "recurrent":
            return ops.reshape(handed, (b, h, n, r * e))
        within, queries = prepared[:2]
        before = ops.contract("bhnisd,bhnde->bhnise", queries, handed)
        return ops.reshape(ops.add(within, before), (b, h, n, r * e))

    def _scan(
        self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T], read: bool
    ) -> tuple[Tensors[T], Tensors[T]]:
        """Through chunks, handing out the state before each; or through tokens, handing out their values."""
        if self.kernel == "recurrent":
            return ops.scan(_tokens(read), state, self.streams(), axis=2)
        return ops.scan(states_of_chunks(read), state, prepared[2:], axis=2)


def _of_rows(ops: Vocabulary[T], x: T) -> T:
    """A number of each token [B, H, N, C, 1] for its rows [B, H, N, C, 1, 1]."""
    return ops.reshape(x, (*ops.shape(x), 1))


def _tokens(read: bool) -> Recurrence:
    def advance(ops: Vocabulary[Any], state: Any, token: Any, _: Any) -> Any:
        _, k, v, log_decay = token
        kept = ops.mul(state[0], ops.map("exp", ops.reshape(log_decay, (*ops.shape(log_decay), 1))))
        return (ops.add(kept, ops.contract("bhrd,bhre->bhde", k, v)),)

    def emit(ops: Vocabulary[Any], before: Any, after: Any, token: Any, _: Any) -> Any:
        return (ops.contract("bhrd,bhde->bhre", token[0], after[0]),) if read else ()

    return Recurrence("recurrence of tokens", advance, emit, "recurrence")
