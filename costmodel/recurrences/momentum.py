"""A linear memory trained with momentum and forgetting: S_t = eta_t S_{t-1} - theta_t grad_t, M_t = a_t M_{t-1} + S_t.

grad_t is that of |k_t + LN(k_t M) - v_t|^2 at the memory M before t's chunk; a token reads q_t + LN(q_t M_t) (Behrouz
et al. 2024, arXiv 2501.00663, section 3). Within a chunk all steps are known at once: that of token j comes to M_i with
the weight G_ij = sum over j <= t <= i of (prod of a after t, up to i) (prod of eta after j, up to t), a product of two
triangular matrices (flash-linear-attention ops/titans/naive.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Recurrent, Tensors
from costmodel.dims import Dim, divide
from costmodel.masks import Mask
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.inner_loop import loss_gradient, started
from costmodel.recurrences.pieces import layer_normed, of_heads

T = TypeVar("T")

CAUSAL = Mask(causal=True)


@dataclass(frozen=True)
class Momentum(Recurrent[T]):
    """q, k, v [B, H, n, d] and gates of the tokens [B, H, n, 1]; the state is M and S [B, H, d, d].

    Attributes:
        rate: theta.
        log_keep: the logarithm of a, what is left of the memory.
        log_push: the logarithm of eta, what is left of the momentum.
        weights: weight and bias of the layer norm LN [H, d]; M [H, d, d] before the first token.
        chunk: tokens of a chunk, C.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v", "rate", "log_keep", "log_push")
    of_heads: ClassVar[tuple[str, ...]] = ("weights",)

    q: T
    k: T
    v: T
    rate: T
    log_keep: T
    log_push: T
    weights: tuple[T, ...]
    chunk: Dim

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        memory = started(ops, self.weights[2], ops.shape(self.q)[0])
        return memory, ops.zeros_like(memory)

    def run(self, ops: Vocabulary[T], state: Tensors[T]) -> tuple[T, Tensors[T]]:
        b, h, n, d = ops.shape(self.q)

        def cut(x: T) -> T:
            return ops.reshape(x, (b, h, divide(n, self.chunk), self.chunk, ops.shape(x)[3]))

        norms = tuple(of_heads(ops, x) for x in self.weights[:2])
        after, (mixed,) = ops.scan(_Chunk().loop, state, tuple(cut(x) for x in self.streams()), norms, axis=2)
        return ops.reshape(mixed, (b, h, n, d)), after


def step_of(ops: Vocabulary[T], memory: T, token: tuple[T, T, T], norms: tuple[T, T]) -> T:
    """2 theta times the loss's gradient by k M [B, H, C, d], of k, v [B, H, C, d] and theta [B, H, C, 1]."""
    k, v, rate = token
    guess = ops.contract("bhcd,bhde->bhce", k, memory)
    return ops.mul(loss_gradient(ops, guess, ops.map("sub", v, k), norms), ops.scale(rate, 2))


@dataclass(frozen=True)
class _Chunk:
    """One chunk: ``advance`` keeps what ``emit``, called right after it, needs too."""

    found: list[Any] = field(default_factory=list)

    @property
    def loop(self) -> Recurrence:
        return Recurrence("chunks of steps with momentum", self.advance, self.emit)

    def advance(self, ops: Vocabulary[Any], state: Any, tokens: Any, norms: Any) -> Any:
        (memory, momentum), (_, k, v, rate, log_keep, log_push) = state, tokens
        size = ops.shape(k)[2]
        keep, keeps = _products(ops, log_keep)
        push, pushes = _products(ops, log_push)
        both = ops.contract("bhit,bhtj->bhij", keeps, pushes, CAUSAL, "ij")
        start = ops.contract("bhit,bhtx->bhix", keeps, push, CAUSAL, "it")
        step = step_of(ops, memory, (k, v, rate), norms)
        self.found[:] = [step, keep, start, both]

        def end(x: Any) -> Any:
            return ops.slice(x, 2, size - 1, 1)

        def taken(weights: Any) -> Any:
            late = ops.mul(k, ops.permute(end(weights), (0, 1, 3, 2)))
            return ops.contract("bhcd,bhce->bhde", late, step)

        kept = ops.add(ops.mul(memory, end(keep)), ops.mul(momentum, end(start)))
        return ops.map("sub", kept, taken(both)), ops.map("sub", ops.mul(momentum, end(push)), taken(pushes))

    def emit(self, ops: Vocabulary[Any], before: Any, after: Any, tokens: Any, norms: Any) -> Any:
        (memory, momentum), (q, k, *_) = before, tokens
        step, keep, start, both = self.found
        self.found.clear()
        scores = ops.mul(ops.contract("bhid,bhjd->bhij", q, k, CAUSAL, "ij"), both)
        moved = ops.contract("bhij,bhje->bhie", scores, step, CAUSAL, "ij")
        parts = ((keep, memory), (start, momentum))
        old, pushed = (ops.mul(ops.contract("bhcd,bhde->bhce", q, x), weight) for weight, x in parts)
        return (ops.add(q, layer_normed(ops, ops.map("sub", ops.add(old, pushed), moved), *norms)),)


def _products(ops: Vocabulary[T], log: T) -> tuple[T, T]:
    """Of factors [B, H, C, 1]: products from the chunk's start [B, H, C, 1]; after j, up to i [B, H, C, C]."""
    b, h, c, _ = ops.shape(log)
    running = ops.cumsum(log, 2)
    apart = ops.map("sub", running, ops.reshape(running, (b, h, 1, c)))
    return ops.map("exp", running), ops.map("exp", ops.masked(apart, CAUSAL, "-inf"))
