"""RWKV-4's weighted mean of values, for each channel: weights exp(k), decaying by exp(-rate) from token to token.

y_t = (a_{t-1} + exp(first + k_t) v_t) / (b_{t-1} + exp(first + k_t)), a_t = exp(-rate) a_{t-1} + exp(k_t) v_t, and b_t
likewise without v (Peng et al. 2023, arXiv 2305.13048, equations 29-31 and appendix D). Numerators and denominators are
kept divided by the exponential of a running maximum m, so that nothing overflows; that makes the state nonlinear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from costmodel.carries.state import Recurrent, Tensors
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


@dataclass(frozen=True)
class Wkv(Recurrent[T]):
    """k, v [B, E, n, 1]; the state is a, b and m [B, E, 1].

    Attributes:
        rate: [E, 1], positive.
        first: [E, 1], added to the key of the token itself.
    """

    k: T
    v: T
    rate: T
    first: T

    def streams(self) -> tuple[T, ...]:
        return self.k, self.v

    def parameters(self) -> tuple[T, ...]:
        return self.rate, self.first

    def on(self, streams: Sequence[T], parameters: Sequence[T]) -> Wkv[T]:
        k, v = streams
        rate, first = parameters
        return replace(self, k=k, v=v, rate=rate, first=first)

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        """Empty; the maximum starts at 0, as any start cancels out."""
        batch, channels = ops.shape(self.k)[:2]
        return tuple(ops.zeros((batch, channels, 1), "accumulate") for _ in range(3))

    def run(self, ops: Vocabulary[T], state: Tensors[T]) -> tuple[T, Tensors[T]]:
        after, (mixed,) = ops.scan(_TOKENS, state, (self.k, self.v), (self.rate, self.first), axis=2)
        return mixed, after


def wkv_step(ops: Vocabulary[T], state: Tensors[T], token: tuple[T, T], rate: T) -> Tensors[T]:
    """The state after a token k, v [B, E, 1]."""
    (a, b, m), (k, v) = state, token
    faded = ops.map("sub", m, rate)
    largest = ops.map("maximum", faded, k)
    old, new = (ops.map("exp", ops.map("sub", y, largest)) for y in (faded, ops.cast(k, "accumulate")))
    return ops.add(ops.mul(a, old), ops.mul(new, v)), ops.add(ops.mul(b, old), new), largest


def wkv_output(ops: Vocabulary[T], state: Tensors[T], token: tuple[T, T], first: T) -> T:
    """A token's output [B, E, 1], given the state before it."""
    (a, b, m), (k, v) = state, token
    own = ops.add(ops.cast(k, "accumulate"), first)
    largest = ops.map("maximum", m, own)
    old, new = (ops.map("exp", ops.map("sub", y, largest)) for y in (m, own))
    values, weights = ops.add(ops.mul(a, old), ops.mul(new, v)), ops.add(ops.mul(b, old), new)
    return ops.cast(ops.map("div", values, weights), "model")


def _advance(ops: Vocabulary[Any], state: Any, token: Any, weights: Any) -> Any:
    return wkv_step(ops, state, token, weights[0])


_TOKENS = Recurrence(
    "wkv",
    _advance,
    lambda ops, before, after, token, weights: (wkv_output(ops, before, token, weights[1]),),
    "recurrence",
)
