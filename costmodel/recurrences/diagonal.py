"""Diagonal state spaces with weights of their own for each channel: the long filter, and one step of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from costmodel.carries.spectrum import Filter
from costmodel.dims import Dim, Shape
from costmodel.mixer import Weights
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")

PARAMETERS = ("log_step", "log_decay", "frequency", "read")


def filter_weights(channels: Dim, pairs: Dim) -> dict[str, Shape]:
    """Shapes of the weights ``PARAMETERS`` of channels with so many complex entries."""
    entries = channels, pairs
    return {"log_step": (channels,), "log_decay": entries, "frequency": entries, "read": (*entries, 2)}


@dataclass(frozen=True)
class DiagonalFilter(Filter[T]):
    """taps_l = 2 Re sum over pairs of read (exp(step A) - 1) / A exp(step A)^l, A = -exp(log_decay) + i frequency.

    That is zero-order hold of a diagonal system with ones as its input matrix (Gu et al. 2022, arXiv 2206.11893,
    sections 3.2 and 4; state-spaces/s4 s4d.py). The Vandermonde matrix exp(step A)^l is made on chip.

    Attributes:
        weights: log_step [H], log_decay and frequency [H, N], read [H, N, 2] (complex).
    """

    weights: tuple[T, ...]

    def parameters(self) -> tuple[T, ...]:
        return self.weights

    def on(self, parameters: Sequence[T]) -> Self:
        return type(self)(tuple(parameters))

    def taps(self, ops: Vocabulary[T], places: T) -> T:
        result: T = ops.fused("Vandermonde sums", _taps, places, *self.weights)
        return result


def diagonal_filter(w: Weights) -> DiagonalFilter[Any]:
    """The filter of a layer's weights."""
    return DiagonalFilter(tuple(w[name] for name in PARAMETERS))


def _taps(ops: Vocabulary[T], places: T, log_step: T, log_decay: T, frequency: T, read: T) -> T:
    growth, turn, held = discretised(ops, log_step, log_decay, frequency)
    read = ops.complex_mul(held, ops.cast(read, "accumulate"))
    h = ops.shape(growth)[0]
    size, angle = ops.map("exp", ops.mul(growth, places)), ops.mul(turn, places)
    real, imaginary = (ops.slice(read, 2, part, 1) for part in (0, 1))
    cosines, sines = (ops.map(wave, angle) for wave in ("cos", "sin"))
    terms = ops.mul(size, ops.map("sub", ops.mul(cosines, real), ops.mul(sines, imaginary)))
    return ops.scale(ops.reshape(ops.sum(terms, (1,)), (h, ops.shape(places)[0])), 2)


def discretised(ops: Vocabulary[T], log_step: T, log_decay: T, frequency: T) -> tuple[T, T, T]:
    """Real and imaginary part [H, N, 1] of step A, and (exp(step A) - 1) / A [H, N, 2]; zero-order hold."""
    h, pairs = ops.shape(log_decay)
    step = ops.reshape(ops.map("exp", ops.cast(log_step, "accumulate")), (h, 1, 1))
    decay = ops.reshape(ops.map("neg", ops.map("exp", ops.cast(log_decay, "accumulate"))), (h, pairs, 1))
    rate = ops.concat([decay, ops.cast(ops.reshape(frequency, (h, pairs, 1)), "accumulate")], 2)
    growth, turn = (ops.mul(ops.slice(rate, 2, part, 1), step) for part in (0, 1))
    size = ops.map("exp", growth)
    less_one = ops.concat([ops.shift(ops.mul(size, ops.map("cos", turn)), -1), ops.mul(size, ops.map("sin", turn))], 2)
    squared = ops.sum(ops.map("square", rate), (2,))
    held = ops.map("div", ops.complex_mul(less_one, rate, conjugate=True), squared)
    return growth, turn, held


def factor(ops: Vocabulary[T], growth: T, turn: T) -> T:
    """exp(growth + i turn) [..., 2] of growth and turn [..., 1]."""
    size = ops.map("exp", growth)
    return ops.concat([ops.mul(size, ops.map(wave, turn)) for wave in ("cos", "sin")], len(ops.shape(growth)) - 1)


def diagonal_step(ops: Vocabulary[T], x: T, w: Weights, cache: T) -> T:
    """The output [B, H, 1, 1] of one token x [B, H, 1, 1], whose states [B, H, N, 2] are in ``cache`` and change."""

    def turned(ops: Vocabulary[Any], state: Any, x: Any, *weights: Any) -> Any:
        growth, turn, _ = discretised(ops, *weights)
        kept = ops.complex_mul(state, factor(ops, growth, turn))
        return ops.add(kept, ops.pad(ops.cast(x, "accumulate"), 3, 0, 2))

    def heard(ops: Vocabulary[Any], state: Any, read: Any, *weights: Any) -> Any:
        _, _, held = discretised(ops, *weights)
        terms = ops.complex_mul(state, ops.complex_mul(held, ops.cast(read, "accumulate")))
        return ops.cast(ops.scale(ops.sum(ops.slice(terms, 3, 0, 1), (2,)), 2), "model")

    weights = tuple(w[name] for name in PARAMETERS[:3])
    state = ops.append(cache, ops.fused("state update", turned, cache, x, *weights), 0)
    result: T = ops.fused("output", heard, state, w["read"], *weights)
    return result


def written_taps(xp: Any, w: Weights, n: int) -> Any:
    """The first n taps [H, n] by their definition, as ``Mixer.written`` needs them."""
    rate = xp.complex(-xp.exp(w["log_decay"]), w["frequency"])
    factor = xp.exp(w["log_step"])[:, None] * rate
    read = xp.complex(w["read"][..., 0], w["read"][..., 1]) * (xp.exp(factor) - 1) / rate
    return 2 * xp.stack([(read * xp.exp(factor * lag)).real.sum(-1) for lag in range(n)], -1)
