"""Linear attention with decay: S_t = diag(exp g_t) S_{t-1} + k_t v_t^T, o_t = q_t S_t.

P is q_i^T diag(exp(G_i - G_j)) k_j below the diagonal, G the running sum of the logarithms of decay g. Three
implementations of it: ``chunked`` (matrix products within chunks, a scan over chunks; Yang et al. 2023, arXiv
2312.06635, section 4; Dao & Gu 2024, arXiv 2405.21060, section 6), ``recurrent`` (token by token, the state on chip)
and ``quadratic`` (P written out).
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
from costmodel.recurrences.chunk_pairs import Decay, decayed_pairs, spread

T = TypeVar("T")

KERNELS = ("chunked", "recurrent", "quadratic")


@dataclass(frozen=True)
class Gated(State[T]):
    """The recurrence of q, k [B, H, n, d] and v [B, H, n, e]; the state is [B, H, d, e].

    q and k may be shared by the heads of a group, [B, H_kv, n, d], if each head has one decay.

    Attributes:
        log_decay: [B, H, n, 1] for one decay a head, [B, H, n, d] for one a channel, or ``None`` for none.
        chunk: tokens of a chunk.
        kernel: one of ``KERNELS``.
        head_log_decay: [H] or [H, d], in place of ``log_decay`` where decay is a weight of each head or channel.
        before: whether a token reads the state before it, o_t = q_t S_{t-1}; for mixers with decay.
    """

    q: T
    k: T
    v: T
    log_decay: T | None
    chunk: Dim
    kernel: str = "chunked"
    head_log_decay: T | None = None
    before: bool = False

    def streams(self) -> tuple[T, ...]:
        return (self.q, self.k, self.v) if self.log_decay is None else (self.q, self.k, self.v, self.log_decay)

    def parameters(self) -> tuple[T, ...]:
        return () if self.head_log_decay is None else (self.head_log_decay,)

    def on(self, streams: Sequence[T], parameters: Sequence[T] = ()) -> Gated[T]:
        (q, k, v, *decay), own = streams, parameters[0] if parameters else None
        return replace(self, q=q, k=k, v=v, log_decay=decay[0] if decay else None, head_log_decay=own)

    def decay(self, ops: Vocabulary[T]) -> T | None:
        """The logarithm of decay at each token."""
        if self.head_log_decay is None:
            return self.log_decay
        h, *channels = ops.shape(self.head_log_decay)
        b, n, d = ops.shape(self.k)[0], ops.shape(self.k)[2], channels[0] if channels else 1
        return ops.expand(ops.reshape(self.head_log_decay, (1, h, 1, d)), (b, h, n, d))

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        b, h, _, e = ops.shape(self.v)
        return (ops.zeros((b, h, ops.shape(self.k)[3], e), "accumulate"),)

    def whole(self, ops: Vocabulary[T]) -> T:
        return _quadratic(ops, self) if self.kernel == "quadratic" else super().whole(ops)

    def prepare(self, ops: Vocabulary[T]) -> Tensors[T]:
        return () if self.kernel == "recurrent" else _chunks(ops, self)

    def summary(self, ops: Vocabulary[T], prepared: Tensors[T]) -> Affine[T]:
        (state,), _ = self._scan(ops, prepared, self.initial(ops), read=False)
        decay = self.decay(ops)
        if decay is None:
            return Affine((), (state,))
        return Affine((ops.map("exp", _by_row(ops, ops.sum(decay, (2,)))),), (state,))

    def outputs(self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T]) -> T:
        _, handed = self._scan(ops, prepared, state, read=True)
        if self.kernel == "recurrent":
            return handed[0]
        within, queries = prepared[:2]
        before = ops.contract("bhnid,bhnde->bhnie", queries, handed[0])
        b, h, _, e = ops.shape(self.v)
        return ops.reshape(ops.add(within, before), (b, h, ops.shape(self.v)[2], e))

    def _scan(
        self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T], read: bool
    ) -> tuple[Tensors[T], Tensors[T]]:
        """Through chunks, handing out the state before each; or through tokens, handing out their values."""
        if self.kernel == "recurrent":
            decay = self.decay(ops)
            heads = ops.shape(self.v)[1]
            own = spread(ops, self.q, heads), spread(ops, self.k, heads), self.v
            tokens = own if decay is None else (*own, decay)
            return ops.scan(_tokens(read, self.before), state, tokens, axis=2)
        return ops.scan(states_of_chunks(read), state, prepared[2:], axis=2)


def _by_row(ops: Vocabulary[T], decay: T) -> T:
    """Decay [B, H, 1, d or 1] of the rows of a state: [B, H, d or 1, 1]."""
    b, h, _, d = ops.shape(decay)
    return ops.reshape(decay, (b, h, d, 1))


def _chunks(ops: Vocabulary[T], x: Gated[T]) -> Tensors[T]:
    """Of each chunk: values of its own pairs, queries for the state before, what it adds to the state, its decay."""

    def cut(y: T) -> T:
        b, h, n, d = ops.shape(y)
        return ops.reshape(y, (b, h, divide(n, x.chunk), x.chunk, d))

    q, k, v = cut(x.q), cut(x.k), cut(x.v)
    decay = x.decay(ops)
    if decay is None:
        within = _within(ops, q, k, v, None)
        return within, q, ops.cast(ops.contract("bhnid,bhnie->bhnde", k, v), "accumulate")
    sums = _sums(ops, cut(decay), x.before)
    b, h, n, _, d = ops.shape(sums.running)
    last = ops.slice(sums.running, 3, x.chunk - 1, 1)
    late = ops.mul(spread(ops, k, h), ops.map("exp", ops.map("sub", last, sums.running)))
    added = ops.cast(ops.contract("bhnid,bhnie->bhnde", late, v), "accumulate")
    early = ops.mul(spread(ops, q, h), ops.map("exp", sums.upto))
    return _within(ops, q, k, v, sums), early, added, ops.reshape(ops.map("exp", last), (b, h, n, d, 1))


def _sums(ops: Vocabulary[T], decay: T, before: bool) -> Decay[T]:
    """Sums of decay from the chunk's start."""
    return Decay(ops.cumsum(decay, 3), ops.cumsum(decay, 3, exclusive=True) if before else None)


def _within(ops: Vocabulary[T], q: T, k: T, v: T, decay: Decay[T] | None) -> T:
    """Values from the pairs within a chunk [B, H, N, C, e]."""
    return ops.contract("bhnij,bhnje->bhnie", decayed_pairs(ops, q, k, decay), v, Mask(causal=True), "ij")


def states_of_chunks(read: bool) -> Recurrence:
    """Over what each chunk adds to the state, and its decay; hands out the state before each chunk."""

    def advance(ops: Vocabulary[Any], state: Any, chunk: Any, _: Any) -> Any:
        added, *decay = chunk
        return (ops.add(ops.mul(state[0], decay[0]) if decay else state[0], added),)

    return Recurrence("states of chunks", advance, lambda ops, before, after, chunk, _: before if read else ())


def _tokens(read: bool, earlier: bool) -> Recurrence:
    def advance(ops: Vocabulary[Any], state: Any, token: Any, _: Any) -> Any:
        _, k, v, *decay = token
        kept = state[0]
        if decay:
            b, h, d = ops.shape(decay[0])
            kept = ops.mul(kept, ops.map("exp", ops.reshape(decay[0], (b, h, d, 1))))
        return (ops.add(kept, ops.contract("bhd,bhe->bhde", k, v)),)

    def emit(ops: Vocabulary[Any], before: Any, after: Any, token: Any, _: Any) -> Any:
        return (ops.contract("bhd,bhde->bhe", token[0], (before if earlier else after)[0]),) if read else ()

    return Recurrence("recurrence of tokens", advance, emit, "recurrence")


def _quadratic(ops: Vocabulary[T], x: Gated[T]) -> T:
    """P written out: one chunk of all tokens, and no state."""

    def alone(y: T) -> T:
        b, h, n, d = ops.shape(y)
        return ops.reshape(y, (b, h, 1, n, d))

    decay = x.decay(ops)
    sums = None if decay is None else replace(_sums(ops, alone(decay), x.before), whole=x.chunk)
    out = _within(ops, alone(x.q), alone(x.k), alone(x.v), sums)
    return ops.reshape(out, ops.shape(x.v))
