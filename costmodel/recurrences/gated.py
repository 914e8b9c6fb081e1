"""Linear attention with decay: S_t = diag(exp g_t) S_{t-1} + k_t v_t^T, o_t = q_t S_t.

P is q_i^T diag(exp(G_i - G_j)) k_j below the diagonal, G the running sum of the logarithms of decay g. Three
implementations of it: ``chunked`` (matrix products within chunks, a scan over chunks; Yang et al. 2023, arXiv
2312.06635, section 4; Dao & Gu 2024, arXiv 2405.21060, section 6), ``recurrent`` (token by token, the state on chip)
and ``quadratic`` (P written out).

``chunked`` has the kernels of flash-linear-attention (ops/common/chunk_h.py, chunk_o.py, ops/gla/chunk.py): one scan
reads keys and values and writes the state before each chunk at the model's precision, one kernel makes the outputs of
all chunks of these; with one decay a channel, one more makes the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from costmodel.carries.state import Affine, State, Tensors
from costmodel.dims import Dim, is_number
from costmodel.documents import Packed
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.chunk_pairs import CAUSAL, Decay, decayed_pairs, in_chunks, spread
from costmodel.recurrences.resets import fades, reset, to_the_end, with_resets

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

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v", "log_decay")
    of_heads: ClassVar[tuple[str, ...]] = ("head_log_decay",)

    q: T
    k: T
    v: T
    log_decay: T | None
    chunk: Dim
    kernel: str = "chunked"
    head_log_decay: T | None = None
    before: bool = False

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

    def queries(self, ops: Vocabulary[T]) -> T:
        """q; those that would read the state before a document are 0."""
        return reset(ops, self.q, self.packed) if self.before else self.q

    def prepare(self, ops: Vocabulary[T]) -> Any:
        """Tokens, or chunks of them; pairs with one decay a channel.

        Such pairs are a kernel of their own; others are made where they are used.
        """
        q, decay = self.queries(ops), self.decay(ops)
        faded = with_resets(ops, decay, self.packed, self.v)
        if self.kernel == "recurrent":
            return _Prepared(q, self.k, self.v, faded)
        q, k, v = (in_chunks(ops, x, self.chunk) for x in (q, self.k, self.v))
        sums = None if decay is None else _sums(ops, in_chunks(ops, decay, self.chunk), self.before)
        pairs = None
        if sums is not None and not is_number(ops.shape(sums.running)[4], 1):
            pairs = decayed_pairs(ops, q, k, sums, self.packed)
        if faded is None or self.packed is None:
            return _Prepared(q, k, v, faded, sums, () if sums is None else (sums.running,), pairs=pairs)
        own = fades(ops, in_chunks(ops, faded, self.chunk), self.before)
        return _Prepared(q, k, v, faded, sums, (own.left, own.whole), own.early if self.before else own.read, pairs)

    def summary(self, ops: Vocabulary[T], prepared: Any) -> Affine[T]:
        (state,), _ = self._scan(ops, prepared, self.initial(ops), read=False)
        if prepared.decay is None:
            return Affine((), (state,))
        return Affine((ops.map("exp", _by_row(ops, ops.sum(prepared.decay, (2,)))),), (state,))

    def outputs(self, ops: Vocabulary[T], prepared: Any, state: Tensors[T]) -> T:
        _, (handed,) = self._scan(ops, prepared, state, read=True)
        if self.kernel == "recurrent":
            return handed
        own: _Prepared[T] = prepared
        sums = () if own.sums is None else own.sums.tensors
        read = () if own.read is None else (own.read,)
        if own.pairs is not None:
            upto = read or sums[-1:]
            values = ops.fused("outputs of chunks", _values, own.v, handed, own.q, *upto, own.pairs, family="scan")
        else:
            body = partial(_values_of_pairs, count=len(sums), packed=self.packed)
            given = own.v, handed, own.q, own.k, *sums, *read
            values = ops.fused("outputs of chunks", body, *given, family="scan")
        return ops.reshape(values, ops.shape(self.v))

    def _scan(
        self, ops: Vocabulary[T], prepared: _Prepared[T], state: Tensors[T], read: bool
    ) -> tuple[Tensors[T], Tensors[T]]:
        """Through chunks, handing out the state before each; or through tokens, handing out their values."""
        q, k, v = prepared.q, prepared.k, prepared.v
        if self.kernel == "recurrent":
            heads = ops.shape(v)[1]
            own = spread(ops, q, heads), spread(ops, k, heads), v
            tokens = own if prepared.decay is None else (*own, prepared.decay)
            return ops.scan(_tokens(read, self.before), state, tokens, axis=2)
        return ops.scan(_over_chunks(read), state, (k, v, *prepared.fades), axis=2)


@dataclass(frozen=True)
class _Prepared(Generic[T]):
    """What is done before the state is known.

    Attributes:
        q, k, v: of tokens, or in chunks.
        decay: the logarithm at each token, -inf where the state is reset.
        sums: of decay without resets, in chunks.
        fades: what the scan over chunks reads of decay (see ``to_the_end``).
        read: sums by which queries read the state before their chunk, where they are others than those of pairs.
        pairs: of one decay a channel.
    """

    q: T
    k: T
    v: T
    decay: T | None
    sums: Decay[T] | None = None
    fades: Tensors[T] = ()
    read: T | None = None
    pairs: T | None = None


def _by_row(ops: Vocabulary[T], decay: T) -> T:
    """Decay [B, H, 1, d or 1] of the rows of a state: [B, H, d or 1, 1]."""
    b, h, _, d = ops.shape(decay)
    return ops.reshape(decay, (b, h, d, 1))


def _sums(ops: Vocabulary[T], decay: T, before: bool) -> Decay[T]:
    """Sums of decay from the chunk's start."""
    return Decay(ops.cumsum(decay, 3), ops.cumsum(decay, 3, exclusive=True) if before else None)


def _values_of_pairs(
    ops: Vocabulary[T], v: T, befores: T, q: T, k: T, *sums: T, count: int, packed: Packed | None
) -> T:
    """Values of chunks [B, H, N, C, e], of pairs with no decay, or with one a head.

    Args:
        sums: ``count`` of pairs, and those by which queries read the state if they are others.
    """
    decay = Decay(*sums[:count]) if count else None
    read = sums[count:] or sums[count - 1 : count] if sums else ()
    return _values(ops, v, befores, q, *read, decayed_pairs(ops, q, k, decay, packed))


def _values(ops: Vocabulary[T], v: T, befores: T, q: T, *others: T) -> T:
    """Values of chunks, of their own pairs [B, H, N, C, C] and of the states before them [B, H, N, d, e].

    Args:
        others: the sums of decay by which queries read these, if there is decay; pairs.
    """
    *read, pairs = others
    for sums in read:
        q = ops.mul(spread(ops, q, ops.shape(v)[1]), ops.map("exp", sums))
    within = ops.contract("bhnij,bhnje->bhnie", pairs, v, CAUSAL, "ij")
    return ops.add(within, ops.contract("bhnid,bhnde->bhnie", q, befores))


def _over_chunks(read: bool) -> Recurrence:
    """Over keys and values of chunks, and sums of decay; hands out the state before each."""

    def advance(ops: Vocabulary[Any], state: Any, chunk: Any, _: Any) -> Any:
        k, v, *sums = chunk
        kept = state[0]
        if sums:
            left, whole = to_the_end(ops, tuple(sums))
            k = ops.mul(spread(ops, k, ops.shape(left)[1]), ops.map("exp", left))
            kept = ops.mul(kept, ops.map("exp", _by_row(ops, whole)))
        return (ops.add(kept, ops.cast(ops.contract("bhid,bhie->bhde", k, v), "accumulate")),)

    def emit(ops: Vocabulary[Any], before: Any, after: Any, chunk: Any, _: Any) -> Any:
        return (ops.cast(before[0], "model"),) if read else ()

    return Recurrence("states of chunks", advance, emit)


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
    pairs = decayed_pairs(ops, alone(x.q), alone(x.k), sums, x.packed)
    out = ops.contract("bhnij,bhnje->bhnie", pairs, alone(x.v), CAUSAL, "ij")
    return ops.reshape(out, ops.shape(x.v))
