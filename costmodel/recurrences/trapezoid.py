"""Mamba-3's recurrence: a state with scalar decay, turning channels, and inputs weighted by the trapezoidal rule.

S_t = a_t S_{t-1} + a_t dt_t (1 - u_t) k_{t-1} v_{t-1}^T + u_t dt_t k_t v_t^T, o_t = q_t S_t, where q and k have biases
of each head and are turned by angles that add up along the sequence (arXiv 2603.15569; state-spaces/mamba
mamba3_siso_step.py). Token j counts u_j dt_j for itself and (1 - u_{j+1}) dt_{j+1} more for later ones, so that it is
linear attention with decay (``costmodel.recurrences.gated``), less that excess on the diagonal.

A rank turns by the angles since its own first token. To the next rank, its state goes turned back by all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from costmodel.carries.state import Affine, State, Tensors
from costmodel.dims import Dim
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.gated import Gated

T = TypeVar("T")

KERNELS = ("chunked", "recurrent")


@dataclass(frozen=True)
class Trapezoid(State[T]):
    """The recurrence of q, k [B, 1, n, d], which all heads share, and v [B, H, n, e].

    The state is in three parts: the first halves of turned channels, their second halves [B, H, d_r/2, e] each, and
    the others [B, H, d - d_r, e].

    Attributes:
        turns: [B, H, n, d_r/2], by how much each token turns.
        log_decay: [B, H, n, 1].
        own, following: [B, H, n, 1], what a token counts: for itself, and more for later ones.
        bias_q, bias_k: [H, d].
        chunk: tokens of a chunk.
        kernel: one of ``KERNELS``.
    """

    q: T
    k: T
    v: T
    turns: T
    log_decay: T
    own: T
    following: T
    bias_q: T
    bias_k: T
    chunk: Dim
    kernel: str = "chunked"

    def streams(self) -> tuple[T, ...]:
        return self.q, self.k, self.v, self.turns, self.log_decay, self.own, self.following

    def parameters(self) -> tuple[T, ...]:
        return self.bias_q, self.bias_k

    def on(self, streams: Sequence[T], parameters: Sequence[T]) -> Trapezoid[T]:
        q, k, v, turns, log_decay, own, following = streams
        bias_q, bias_k = parameters
        changed = replace(self, q=q, k=k, v=v, turns=turns, log_decay=log_decay, bias_q=bias_q, bias_k=bias_k)
        return replace(changed, own=own, following=following)

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        b, h, _, half = ops.shape(self.turns)
        rest, e = ops.shape(self.k)[3] - 2 * half, ops.shape(self.v)[3]
        return tuple(ops.zeros((b, h, rows, e), "accumulate") for rows in (half, half, rest))

    def prepare(self, ops: Vocabulary[T]) -> Tensors[T]:
        """Turned queries and keys, angles, the excess on the diagonal; then what the gated recurrence prepares."""
        angles = ops.cumsum(self.turns, 2)
        weight = ops.add(self.own, self.following)
        bias_q, bias_k = (_by_head(ops, bias) for bias in (self.bias_q, self.bias_k))
        q = ops.fused("turned queries", turned, self.q, bias_q, angles)
        k = ops.fused("turned keys", lambda ops, w, *of: ops.mul(turned(ops, *of), w), weight, self.k, bias_k, angles)
        excess = ops.fused("diagonal", _excess, self.v, self.q, bias_q, self.k, bias_k, self.following)
        return q, k, angles, excess, *self._gated(q, k).prepare(ops)

    def summary(self, ops: Vocabulary[T], prepared: Tensors[T]) -> Affine[T]:
        q, k, angles, _, *rest = prepared
        does = self._gated(q, k).summary(ops, tuple(rest))
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

    def outputs(self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T]) -> T:
        q, k, _, excess, *rest = prepared
        mixed = self._gated(q, k).outputs(ops, tuple(rest), (ops.concat(state, 2),))
        return ops.map("sub", mixed, excess)

    def _gated(self, q: T, k: T) -> Gated[T]:
        return Gated(q, k, self.v, self.log_decay, self.chunk, self.kernel)


def turned(ops: Vocabulary[T], x: T, bias: T, angles: T) -> T:
    """x + bias [B, H, n, d] with its first channels turned by angles [B, H, n, d_r/2], their halves as two parts."""
    half = ops.shape(angles)[3]
    biased = ops.add(x, bias)
    whole = ops.shape(biased)[3]
    real, imaginary = ops.slice(biased, 3, 0, half), ops.slice(biased, 3, half, half)
    others = ops.slice(biased, 3, 2 * half, whole - 2 * half)
    return ops.concat([*_turn(ops, ops.map("cos", angles), ops.map("sin", angles), real, imaginary), others], 3)


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


def _by_head(ops: Vocabulary[T], bias: T) -> T:
    h, d = ops.shape(bias)
    return ops.reshape(bias, (h, 1, d))


def _excess(ops: Vocabulary[Any], v: Any, q: Any, bias_q: Any, k: Any, bias_k: Any, following: Any) -> Any:
    """(q + bias) . (k + bias) following v: turning leaves the product of a token's own query and key as it is."""
    product = ops.sum(ops.mul(ops.add(q, bias_q), ops.add(k, bias_k)), (3,))
    return ops.mul(v, ops.mul(product, following))
