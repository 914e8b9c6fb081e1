"""Test-time training: the state is a linear model W, b of each head, trained on the tokens as they come.

A mini-batch of C tokens takes gradient steps on the loss |LN(K W + b) - (V - K)|^2 / 2, all from the model before the
mini-batch; token i reads LN(q_i W_i + b_i) + q_i with the model after its own step. ``dual`` never writes W_i (Sun et
al. 2024, arXiv 2407.04620, section 2.5; test-time-training/ttt-lm-pytorch ttt.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from costmodel.carries.state import Recurrent, Tensors
from costmodel.dims import Dim, divide
from costmodel.masks import Mask
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import layer_normed, of_heads

T = TypeVar("T")


@dataclass(frozen=True)
class InnerLinear(Recurrent[T]):
    """q, k, v [B, H, n, d] and rates of the tokens [B, H, n, 1]; the state is W [B, H, d, d] and b [B, H, 1, d].

    Attributes:
        rate: of each token.
        weights: by which the steps up to each place of a mini-batch are multiplied [H, C, 1]; weight and bias of the
            layer norm LN [H, d]; W [H, d, d] and b [H, d] before the first token.
        chunk: tokens of a mini-batch, C.
    """

    q: T
    k: T
    v: T
    rate: T
    weights: tuple[T, ...]
    chunk: Dim

    def streams(self) -> tuple[T, ...]:
        return self.q, self.k, self.v, self.rate

    def parameters(self) -> tuple[T, ...]:
        return self.weights

    def on(self, streams: Sequence[T], parameters: Sequence[T]) -> InnerLinear[T]:
        q, k, v, rate = streams
        return replace(self, q=q, k=k, v=v, rate=rate, weights=tuple(parameters))

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        *_, weight, bias = self.weights
        batch, (h, d) = ops.shape(self.q)[0], ops.shape(bias)
        start, start_b = ops.reshape(weight, (1, h, d, d)), ops.reshape(bias, (1, h, 1, d))
        spread = ops.expand(start, (batch, h, d, d)), ops.expand(start_b, (batch, h, 1, d))
        return tuple(ops.cast(x, "accumulate") for x in spread)

    def run(self, ops: Vocabulary[T], state: Tensors[T]) -> tuple[T, Tensors[T]]:
        b, h, n, d = ops.shape(self.q)

        def cut(x: T) -> T:
            return ops.reshape(x, (b, h, divide(n, self.chunk), self.chunk, ops.shape(x)[3]))

        places, *norms = self.weights[:3]
        tokens, constants = tuple(cut(x) for x in self.streams()), (places, *(of_heads(ops, x) for x in norms))
        after, (mixed,) = ops.scan(_MiniBatch().loop, state, tokens, constants, axis=2)
        return ops.reshape(mixed, (b, h, n, d)), after


def inner_gradient(ops: Vocabulary[T], state: Tensors[T], k: T, v: T, norm: T, norm_b: T) -> T:
    """The loss's gradient by K W + b [B, H, C, d]."""
    weight, bias = state
    size = ops.shape(k)[3]

    def mean(x: T) -> T:
        return ops.scale(ops.sum(x, (3,)), 1 / size)

    guess = ops.add(ops.contract("bhcd,bhde->bhce", k, weight), bias)
    centred = ops.map("sub", guess, mean(guess))
    inverse = ops.map("rsqrt_eps", mean(ops.map("square", centred)))
    unit = ops.mul(centred, inverse)
    error = ops.map("sub", ops.add(ops.mul(unit, norm), norm_b), ops.map("sub", v, k))
    by_unit = ops.mul(error, norm)
    along = ops.add(mean(by_unit), ops.mul(unit, mean(ops.mul(by_unit, unit))))
    return ops.mul(ops.map("sub", by_unit, along), inverse)


@dataclass(frozen=True)
class _MiniBatch:
    """One mini-batch: ``advance`` keeps its gradient for ``emit``, which is called right after it."""

    found: list[Any] = field(default_factory=list)

    @property
    def loop(self) -> Recurrence:
        return Recurrence("mini-batches of gradient steps", self.advance, self.emit)

    def advance(self, ops: Vocabulary[Any], state: Any, tokens: Any, constants: Any) -> Any:
        (weight, bias), (_, k, v, rate), (places, *norms) = state, tokens, constants
        gradient = inner_gradient(ops, state, k, v, *norms)
        self.found[:] = [gradient]
        last = ops.mul(rate, ops.slice(places, 1, ops.shape(places)[1] - 1, 1))
        step = ops.contract("bhcd,bhce->bhde", ops.mul(k, last), gradient)
        return ops.map("sub", weight, step), ops.map("sub", bias, ops.sum(ops.mul(gradient, last), (2,)))

    def emit(self, ops: Vocabulary[Any], before: Any, after: Any, tokens: Any, constants: Any) -> Any:
        (weight, bias), (q, k, _, rate), (places, *norms) = before, tokens, constants
        (gradient,), causal = self.found, Mask(causal=True)
        b, h, c, _ = ops.shape(rate)
        steps = ops.masked(ops.mul(ops.reshape(rate, (b, h, 1, c)), places), causal)
        scores = ops.mul(ops.contract("bhid,bhjd->bhij", q, k, causal, "ij"), steps)
        moved, moved_b = (ops.contract("bhij,bhje->bhie", x, gradient, causal, "ij") for x in (scores, steps))
        read = ops.map("sub", ops.contract("bhcd,bhde->bhce", q, weight), moved)
        return (ops.add(q, layer_normed(ops, ops.add(read, ops.map("sub", bias, moved_b)), *norms)),)
