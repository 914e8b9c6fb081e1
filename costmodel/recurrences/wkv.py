"""RWKV-4's weighted mean of values, for each channel: weights exp(k), decaying by exp(-rate) from token to token.

y_t = (a_{t-1} + exp(first + k_t) v_t) / (b_{t-1} + exp(first + k_t)), a_t = exp(-rate) a_{t-1} + exp(k_t) v_t, and b_t
likewise without v (Peng et al. 2023, arXiv 2305.13048, equations 29-31 and appendix D). Numerators and denominators are
kept divided by the exponential of a running maximum m, so that nothing overflows. What a stretch of n tokens does is to
take n rates from the exponent of what was before, and to add its own sums, scaled by the larger of both maxima.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Affine, State, Tensors
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.resets import kept

T = TypeVar("T")

#: A maximum before any key, in the range of bfloat16 and float32.
LOWEST = -1e30


@dataclass(frozen=True)
class Wkv(State[T]):
    """k, v [B, E, n, 1]; the state is a, b and m [B, E, 1].

    Attributes:
        rate: [E, 1], positive.
        first: [E, 1], added to the key of the token itself.
    """

    along: ClassVar[tuple[str, ...]] = ("k", "v")
    of_heads: ClassVar[tuple[str, ...]] = ("rate", "first")

    k: T
    v: T
    rate: T
    first: T

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        """Sums of nothing, and a maximum below that of any key."""
        batch, channels = ops.shape(self.k)[:2]
        a, b, m = (ops.zeros((batch, channels, 1), "accumulate") for _ in range(3))
        return a, b, ops.shift(m, LOWEST)

    def prepare(self, ops: Vocabulary[T]) -> Tensors[T]:
        """The logarithm of what resets leave of states at each token, if there are any."""
        return kept(ops, ops.shape(self.k)[2], self.packed)

    def summary(self, ops: Vocabulary[T], prepared: Tensors[T]) -> Affine[T]:
        """What is added to the exponent of what was before [1, E, 1]; the state after these tokens alone."""
        state, _ = ops.scan(_STATES, self.initial(ops), (self.k, self.v, *prepared), (self.rate,), axis=2)
        channels, n = ops.shape(self.k)[1:3]
        added = ops.reshape(ops.scale(self.rate, -n), (1, channels, 1))
        for resets in prepared:
            added = ops.add(added, ops.reshape(ops.sum(resets, (2,)), (1, 1, 1)))
        return Affine((added,), state)

    def outputs(self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T]) -> T:
        _, (mixed,) = ops.scan(_TOKENS, state, (self.k, self.v, *prepared), (self.rate, self.first), axis=2)
        return mixed

    def join(self, ops: Vocabulary[T], first: Tensors[T], then: Tensors[T]) -> Tensors[T]:
        return (ops.add(first[0], then[0]),)

    def advance(self, ops: Vocabulary[T], does: Affine[T], state: Tensors[T]) -> Tensors[T]:
        (added,), (a, b, m) = does.transition, state
        return _sum(ops, (a, b, ops.add(m, added)), does.update)

    def gradient_sent(self, ops: Vocabulary[T], gradient: Tensors[T], state: Tensors[T]) -> Tensors[T]:
        """Gradients of sums without a scale are those of a and b times exp(-m): they too advance as a state does.

        That of m follows from them, as only a exp(m) and b exp(m) count.
        """
        return *gradient[:2], ops.map("neg", state[2])

    def gradient_received(self, ops: Vocabulary[T], sent: Tensors[T], state: Callable[[], Tensors[T]]) -> Tensors[T]:
        a, b, m = state()
        scale = ops.map("exp", ops.add(sent[2], m))
        of_a, of_b = (ops.mul(x, scale) for x in sent[:2])
        return of_a, of_b, ops.add(ops.mul(a, of_a), ops.mul(b, of_b))


def _sum(ops: Vocabulary[T], one: Tensors[T], other: Tensors[T]) -> Tensors[T]:
    """Two states together, at the larger of their maxima."""
    largest = ops.map("maximum", one[2], other[2])
    scales = [ops.map("exp", ops.map("sub", state[2], largest)) for state in (one, other)]
    sums = (ops.add(ops.mul(x, scales[0]), ops.mul(y, scales[1])) for x, y in zip(one[:2], other[:2], strict=True))
    return *sums, largest


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
    return wkv_step(ops, _kept(ops, state, token[2:]), token[:2], weights[0])


def _emit(ops: Vocabulary[Any], before: Any, after: Any, token: Any, weights: Any) -> Any:
    return (wkv_output(ops, _kept(ops, before, token[2:]), token[:2], weights[1]),)


def _kept(ops: Vocabulary[Any], state: Any, resets: Any) -> Any:
    """The state that a token finds: a maximum of -inf, and so nothing, where a document begins."""
    a, b, m = state
    for each in resets:
        m = ops.add(m, each)
    return a, b, m


_STATES = Recurrence("wkv, states only", _advance, lambda *_: (), "recurrence")
_TOKENS = Recurrence(
    "wkv",
    _advance,
    _emit,
    "recurrence",
)
