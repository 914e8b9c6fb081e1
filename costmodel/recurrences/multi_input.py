"""Linear attention with R keys, queries and values a token: S_t = exp(g_t) S_{t-1} + sum over r of k_tr v_tr^T.

o_ts = q_ts S_t for each of the R queries; decay is one number a head. Products with the state are of matrices of R
rows, so that a step does R times the work on a state that is as large as with one (Mamba-3, arXiv 2603.15569, its
multi-input multi-output form). Two implementations: ``chunked`` (within a chunk, pairs of all keys with all queries)
and ``recurrent`` (token by token, the state on chip).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Affine, State, Tensors
from costmodel.dims import Dim
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.chunk_pairs import CAUSAL, Decay, decays_of_pairs, in_chunks

T = TypeVar("T")


@dataclass(frozen=True)
class MultiInput(State[T]):
    """The recurrence of q, k [B, H, n, R, d] and v [B, H, n, R, e]; mixed values are [B, H, n, R e].

    Attributes:
        log_decay: [B, H, n, 1].
        chunk: tokens of a chunk.
        kernel: ``"chunked"`` or ``"recurrent"``.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v", "log_decay")

    q: T
    k: T
    v: T
    log_decay: T
    chunk: Dim
    kernel: str = "chunked"

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        b, h, _, _, e = ops.shape(self.v)
        return (ops.zeros((b, h, ops.shape(self.k)[4], e), "accumulate"),)

    def prepare(self, ops: Vocabulary[T]) -> Tensors[T]:
        """q, k, v in chunks, and sums of decay."""
        if self.kernel == "recurrent":
            return ()
        q, k, v, log_decay = (in_chunks(ops, y, self.chunk) for y in self.streams())
        return q, k, v, ops.cumsum(log_decay, 3)

    def summary(self, ops: Vocabulary[T], prepared: Tensors[T]) -> Affine[T]:
        (state,), _ = self._scan(ops, prepared, self.initial(ops), read=False)
        decay = ops.map("exp", ops.sum(self.log_decay, (2,)))
        return Affine((decay,), (state,))

    def outputs(self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T]) -> T:
        _, (handed,) = self._scan(ops, prepared, state, read=True)
        b, h, n, r, e = ops.shape(self.v)
        if self.kernel != "recurrent":
            handed = ops.fused("outputs of chunks", _values, *prepared, handed, family="scan")
        return ops.reshape(handed, (b, h, n, r * e))

    def _scan(
        self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T], read: bool
    ) -> tuple[Tensors[T], Tensors[T]]:
        """Through chunks, handing out the state before each; or through tokens, handing out their values."""
        if self.kernel == "recurrent":
            return ops.scan(_tokens(read), state, self.streams(), axis=2)
        return ops.scan(_over_chunks(read), state, prepared[1:], axis=2)


def _values(ops: Vocabulary[T], q: T, k: T, v: T, running: T, befores: T) -> T:
    """Values [B, H, N, C, R, e], of pairs within chunks and of the states before them [B, H, N, d, e]."""
    scores = ops.contract("bhnisd,bhnjrd->bhnsrij", q, k, CAUSAL, "ij")
    b, h, n, c, _ = ops.shape(running)
    decays = ops.reshape(decays_of_pairs(ops, Decay(running)), (b, h, n, 1, 1, c, c))
    within = ops.contract("bhnsrij,bhnjre->bhnise", ops.mul(scores, decays), v, CAUSAL, "ij")
    early = ops.mul(q, ops.reshape(ops.map("exp", running), (b, h, n, c, 1, 1)))
    return ops.add(within, ops.contract("bhnisd,bhnde->bhnise", early, befores))


def _over_chunks(read: bool) -> Recurrence:
    """Over keys and values of chunks, and sums of decay; hands out the state before each."""

    def advance(ops: Vocabulary[Any], state: Any, chunk: Any, _: Any) -> Any:
        k, v, running = chunk
        b, h, c, _one = ops.shape(running)
        last = ops.slice(running, 2, c - 1, 1)
        left = ops.map("exp", ops.map("sub", last, running))
        added = ops.contract("bhird,bhire->bhde", ops.mul(k, ops.reshape(left, (b, h, c, 1, 1))), v)
        return (ops.add(ops.mul(state[0], ops.map("exp", last)), ops.cast(added, "accumulate")),)

    def emit(ops: Vocabulary[Any], before: Any, after: Any, chunk: Any, _: Any) -> Any:
        return (ops.cast(before[0], "model"),) if read else ()

    return Recurrence("states of chunks", advance, emit)


def _tokens(read: bool) -> Recurrence:
    def advance(ops: Vocabulary[Any], state: Any, token: Any, _: Any) -> Any:
        _, k, v, log_decay = token
        kept = ops.mul(state[0], ops.map("exp", ops.reshape(log_decay, (*ops.shape(log_decay), 1))))
        return (ops.add(kept, ops.contract("bhrd,bhre->bhde", k, v)),)

    def emit(ops: Vocabulary[Any], before: Any, after: Any, token: Any, _: Any) -> Any:
        return (ops.contract("bhrd,bhde->bhre", token[0], after[0]),) if read else ()

    return Recurrence("recurrence of tokens", advance, emit, "recurrence")
