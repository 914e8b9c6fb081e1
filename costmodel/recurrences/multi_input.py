"""Linear attention with R keys, queries and values a token: S_t = exp(g_t) S_{t-1} + sum over r of k_tr v_tr^T.

o_ts = q_ts S_t for each of the R queries; decay is one number a head. Products with the state are of matrices of R
rows, so that a step does R times the work on a state that is as large as with one (Mamba-3, arXiv 2603.15569, its
multi-input multi-output form). Two implementations: ``chunked`` (within a chunk, pairs of all keys with all queries)
and ``recurrent`` (token by token, the state on chip).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from costmodel.carries.state import Affine, State, Tensors
from costmodel.dims import Dim
from costmodel.documents import Packed
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.chunk_pairs import CAUSAL, Decay, decays_of_pairs, in_chunks
from costmodel.recurrences.resets import apart, fades, to_the_end, with_resets

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

    def prepare(self, ops: Vocabulary[T]) -> Any:
        """The logarithm of decay at each token; with chunks q, k, v in these, sums of decay, and what the scan reads.

        With resets the scan reads other sums than pairs do, and queries read the state by others too.
        """
        faded = with_resets(ops, self.log_decay, self.packed, self.v)
        assert faded is not None
        if self.kernel == "recurrent":
            return _Prepared(faded, (self.q, self.k, self.v))
        q, k, v, log_decay = (in_chunks(ops, y, self.chunk) for y in self.streams())
        running = ops.cumsum(log_decay, 3)
        if self.packed is None:
            return _Prepared(faded, (q, k, v), (running,), (running,))
        own = fades(ops, in_chunks(ops, faded, self.chunk))
        return _Prepared(faded, (q, k, v), (running, own.read), (own.left, own.whole))

    def summary(self, ops: Vocabulary[T], prepared: Any) -> Affine[T]:
        (state,), _ = self._scan(ops, prepared, self.initial(ops), read=False)
        decay = ops.map("exp", ops.sum(prepared.decay, (2,)))
        return Affine((decay,), (state,))

    def outputs(self, ops: Vocabulary[T], prepared: Any, state: Tensors[T]) -> T:
        _, (handed,) = self._scan(ops, prepared, state, read=True)
        b, h, n, r, e = ops.shape(self.v)
        if self.kernel != "recurrent":
            body = partial(_values, packed=self.packed)
            given = *prepared.rows, prepared.sums[0], handed, *prepared.sums[1:]
            handed = ops.fused("outputs of chunks", body, *given, family="scan")
        return ops.reshape(handed, (b, h, n, r * e))

    def _scan(
        self, ops: Vocabulary[T], prepared: _Prepared[T], state: Tensors[T], read: bool
    ) -> tuple[Tensors[T], Tensors[T]]:
        """Through chunks, handing out the state before each; or through tokens, handing out their values."""
        if self.kernel == "recurrent":
            return ops.scan(_tokens(read), state, (*prepared.rows, prepared.decay), axis=2)
        return ops.scan(_over_chunks(read), state, (*prepared.rows[1:], *prepared.fades), axis=2)


@dataclass(frozen=True)
class _Prepared(Generic[T]):
    """What is done before the state is known.

    Attributes:
        decay: the logarithm at each token, -inf where the state is reset.
        rows: q, k and v, of tokens or in chunks.
        sums: of decay of pairs; those by which queries read the state, where they are others.
        fades: what the scan over chunks reads of decay (see ``to_the_end``).
    """

    decay: T
    rows: Tensors[T]
    sums: Tensors[T] = ()
    fades: Tensors[T] = ()


def _values(ops: Vocabulary[T], q: T, k: T, v: T, running: T, befores: T, *read: T, packed: Packed | None) -> T:
    """Values [B, H, N, C, R, e], of pairs within chunks and of the states before them [B, H, N, d, e]."""
    scores = ops.contract("bhnisd,bhnjrd->bhnsrij", q, k, CAUSAL, "ij")
    b, h, n, c, _ = ops.shape(running)
    weights = apart(ops, decays_of_pairs(ops, Decay(running)), packed)
    decays = ops.reshape(weights, (b, h, n, 1, 1, c, c))
    within = ops.contract("bhnsrij,bhnjre->bhnise", ops.mul(scores, decays), v, CAUSAL, "ij")
    (upto,) = read or (running,)
    early = ops.mul(q, ops.reshape(ops.map("exp", upto), (b, h, n, c, 1, 1)))
    return ops.add(within, ops.contract("bhnisd,bhnde->bhnise", early, befores))


def _over_chunks(read: bool) -> Recurrence:
    """Over keys and values of chunks, and sums of decay; hands out the state before each."""

    def advance(ops: Vocabulary[Any], state: Any, chunk: Any, _: Any) -> Any:
        k, v, *sums = chunk
        left, whole = to_the_end(ops, tuple(sums))
        b, h, c, _one = ops.shape(left)
        left = ops.map("exp", left)
        added = ops.contract("bhird,bhire->bhde", ops.mul(k, ops.reshape(left, (b, h, c, 1, 1))), v)
        return (ops.add(ops.mul(state[0], ops.map("exp", whole)), ops.cast(added, "accumulate")),)

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
