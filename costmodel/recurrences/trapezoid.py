"""Mamba-3's recurrence: a state with scalar decay, turning channels, and inputs weighted by the trapezoidal rule.

S_t = a_t S_{t-1} + a_t dt_t (1 - u_t) k_{t-1} v_{t-1}^T + u_t dt_t k_t v_t^T, o_t = q_t S_t, where q and k have biases
of each head and are turned by angles that add up along the sequence (arXiv 2603.15569; state-spaces/mamba
mamba3_siso_step.py). With R keys, values and queries a token, k v^T is the sum over them, and there are R outputs q S.
Token j counts u_j dt_j for itself and (1 - u_{j+1}) dt_{j+1} more for later ones, so that it is linear attention with
decay (``costmodel.recurrences.gated``, ``multi_input``), less that excess on the diagonal.

A rank turns by the angles since its own first token. To the next rank, its state goes turned back by all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Affine, State, Tensors
from costmodel.dims import Dim
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.gated import Gated
from costmodel.recurrences.multi_input import MultiInput

T = TypeVar("T")

KERNELS = ("chunked", "recurrent")


@dataclass(frozen=True)
class Trapezoid(State[T]):
    """The recurrence of q, k [B, 1, n, R, d], which all heads share, and v [B, H, n, e]: values [B, H, n, R e].

    The state is in three parts: the first halves of turned channels, their second halves [B, H, d_r/2, e] each, and
    the others [B, H, d - d_r, e].

    Attributes:
        turns: [B, H, n, d_r/2], by how much each token turns.
        log_decay: [B, H, n, 1].
        own, following: [B, H, n, 1], what a token counts: for itself, and more for later ones.
        weights: biases of q and k [H, R, d]; with more than one value a token, what v is multiplied with for each
            [H, R, e].
        chunk: tokens of a chunk.
        kernel: one of ``KERNELS``.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v", "turns", "log_decay", "own", "following")
    of_heads: ClassVar[tuple[str, ...]] = ("weights",)

    q: T
    k: T
    v: T
    turns: T
    log_decay: T
    own: T
    following: T
    weights: tuple[T, ...]
    chunk: Dim
    kernel: str = "chunked"

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        b, h, _, half = ops.shape(self.turns)
        rest, e = ops.shape(self.k)[4] - 2 * half, ops.shape(self.v)[3]
        return tuple(ops.zeros((b, h, rows, e), "accumulate") for rows in (half, half, rest))

    def prepare(self, ops: Vocabulary[T]) -> Any:
        """Turned queries and keys, values, angles, excess on the diagonal; then what the inner recurrence prepares."""
        angles = ops.cumsum(self.turns, 2)
        bias_q, bias_k, *several = self.weights
        v = ops.fused("values", _values, self.v, *several) if several else self.v
        q = ops.fused("turned queries", turned, self.q, bias_q, angles)
        k = ops.fused("turned keys", _weighted, self.k, bias_k, angles, ops.add(self.own, self.following))
        excess = ops.fused("diagonal", _excess, v, self.q, bias_q, self.k, bias_k, self.following)
        return q, k, v, angles, excess, self._inner(ops, q, k, v).prepare(ops)

    def summary(self, ops: Vocabulary[T], prepared: Any) -> Affine[T]:
        q, k, v, angles, _, inner = prepared
        does = self._inner(ops, q, k, v).summary(ops, inner)
        b, h, n, half = ops.shape(angles)
        last = ops.reshape(ops.slice(angles, 2, n - 1, 1), (b, h, half, 1))
        cos, sin = ops.map("cos", last), ops.map("neg", ops.map("sin", last))
        (decay,), (update,) = does.transition, does.update
        turned_back = _turn(ops, cos, sin, *_parts(ops, update, half)[:2])
        return Affine((ops.mul(cos, decay), ops.mul(sin, decay), decay), (*turned_back, _parts(ops, update, half)[2]))

    def move(self, ops: Vocabulary[T], transition: Tensors[T], state: Tensors[T]) -> Tensors[T]:
        real, imaginary, decay = transition
        return (*_turn(ops, real, imaginary, *state[:2]), ops.mul(state[2], decay))

    def transposed(self, ops: Vocabulary[T], transition: Tensors[T]) -> Tensors[T]:
        real, imaginary, decay = transition
        return real, ops.map("neg", imaginary), decay

    def outputs(self, ops: Vocabulary[T], prepared: Any, state: Tensors[T]) -> T:
        q, k, v, _, excess, inner = prepared
        mixed = self._inner(ops, q, k, v).outputs(ops, inner, (ops.concat(state, 2),))
        return ops.map("sub", mixed, excess)

    def _inner(self, ops: Vocabulary[T], q: T, k: T, v: T) -> State[T]:
        """Linear attention with decay of q, k [B, H, n, R, d], and v [B, H, n, e] or [B, H, n, R, e]."""
        if len(self.weights) > 2:
            return MultiInput(q, k, v, self.log_decay, self.chunk, self.kernel, packed=self.packed)
        b, h, n, _, d = ops.shape(q)
        q, k = (ops.reshape(x, (b, h, n, d)) for x in (q, k))
        return Gated(q, k, v, self.log_decay, self.chunk, self.kernel, packed=self.packed)


def turned(ops: Vocabulary[T], x: T, bias: T, angles: T) -> T:
    """x + bias with its first channels turned by angles, their halves as two parts: [B, H, n, R, d].

    Args:
        x: [B, 1, n, R, d].
        bias: [H, R, d].
        angles: [B, H, n, d_r/2].
    """
    *outer, half = ops.shape(angles)
    angles = ops.reshape(angles, (*outer, 1, half))
    biased = ops.add(x, _by_head(ops, bias))
    whole = ops.shape(biased)[4]
    real, imaginary = ops.slice(biased, 4, 0, half), ops.slice(biased, 4, half, half)
    others = ops.slice(biased, 4, 2 * half, whole - 2 * half)
    return ops.concat([*_turn(ops, ops.map("cos", angles), ops.map("sin", angles), real, imaginary), others], 4)


def _weighted(ops: Vocabulary[T], x: T, bias: T, angles: T, weight: T) -> T:
    """``turned``, times a weight [B, H, n, 1] of each token."""
    return ops.mul(turned(ops, x, bias, angles), _of_rows(ops, weight))


def _values(ops: Vocabulary[T], v: T, weight: T) -> T:
    """v [B, H, n, e] weight [H, R, e]: the values [B, H, n, R, e]."""
    return ops.mul(ops.reshape(v, (*ops.shape(v)[:3], 1, ops.shape(v)[3])), _by_head(ops, weight))


def _turn(ops: Vocabulary[T], cos: T, sin: T, real: T, imaginary: T) -> tuple[T, T]:
    """(cos + i sin) (real + i imaginary), in the precision of the latter."""
    return (
        ops.map("sub", ops.mul(real, cos), ops.mul(imaginary, sin)),
        ops.add(ops.mul(imaginary, cos), ops.mul(real, sin)),
    )


def _parts(ops: Vocabulary[T], state: T, half: Dim) -> tuple[T, T, T]:
    """Rows of a state [B, H, d, e]: halves of those that turn, and the others."""
    rest = ops.shape(state)[2] - 2 * half
    return ops.slice(state, 2, 0, half), ops.slice(state, 2, half, half), ops.slice(state, 2, 2 * half, rest)


def _by_head(ops: Vocabulary[T], weight: T) -> T:
    """A weight [H, R, ...] as it meets tokens: [H, 1, R, ...]."""
    h, *others = ops.shape(weight)
    return ops.reshape(weight, (h, 1, *others))


def _of_rows(ops: Vocabulary[T], x: T) -> T:
    return ops.reshape(x, (*ops.shape(x), 1))


def _excess(ops: Vocabulary[Any], v: Any, q: Any, bias_q: Any, k: Any, bias_k: Any, following: Any) -> Any:
    """What own pairs have too much: (q + bias) . (k + bias) following v, summed over the R keys.

    Turning leaves the products of a token's own queries and keys as they are.
    """
    biased_q, biased_k = ops.add(q, _by_head(ops, bias_q)), ops.add(k, _by_head(ops, bias_k))
    if len(ops.shape(v)) == 4:
        b, h, n, _ = ops.shape(v)
        product = ops.reshape(ops.sum(ops.mul(biased_q, biased_k), (4,)), (b, h, n, 1))
        return ops.mul(v, ops.mul(product, following))
    b, h, n, r, e = ops.shape(v)
    products = ops.contract("bhnsd,bhnrd->bhnsr", biased_q, biased_k)
    weighted = ops.mul(products, _of_rows(ops, following))
    return ops.reshape(ops.contract("bhnsr,bhnre->bhnse", weighted, v), (b, h, n, r * e))
