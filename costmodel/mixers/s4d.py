"""S4D: a diagonal state space for each channel, whose impulse response is a filter as long as the sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.spectrum import Filter, LongConvolution, Spectrum
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import INPUT, Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import toeplitz

T = TypeVar("T")

PARAMETERS = ("log_step", "log_decay", "frequency", "read")


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


def _taps(ops: Vocabulary[T], places: T, *weights: T) -> T:
    growth, turn, read = discretised(ops, *weights)
    h = ops.shape(growth)[0]
    size, angle = ops.map("exp", ops.mul(growth, places)), ops.mul(turn, places)
    real, imaginary = (ops.slice(read, 2, part, 1) for part in (0, 1))
    cosines, sines = (ops.map(wave, angle) for wave in ("cos", "sin"))
    terms = ops.mul(size, ops.map("sub", ops.mul(cosines, real), ops.mul(sines, imaginary)))
    return ops.scale(ops.reshape(ops.sum(terms, (1,)), (h, ops.shape(places)[0])), 2)


def discretised(ops: Vocabulary[T], log_step: T, log_decay: T, frequency: T, read: T) -> tuple[T, T, T]:
    """Real and imaginary part [H, N, 1] of step A, and read (exp(step A) - 1) / A [H, N, 2]."""
    h, pairs = ops.shape(log_decay)
    step = ops.reshape(ops.map("exp", ops.cast(log_step, "accumulate")), (h, 1, 1))
    decay = ops.reshape(ops.map("neg", ops.map("exp", ops.cast(log_decay, "accumulate"))), (h, pairs, 1))
    rate = ops.concat([decay, ops.cast(ops.reshape(frequency, (h, pairs, 1)), "accumulate")], 2)
    growth, turn = (ops.mul(ops.slice(rate, 2, part, 1), step) for part in (0, 1))
    size = ops.map("exp", growth)
    less_one = ops.concat([ops.shift(ops.mul(size, ops.map("cos", turn)), -1), ops.mul(size, ops.map("sin", turn))], 2)
    squared = ops.sum(ops.map("square", rate), (2,))
    held = ops.map("div", ops.complex_mul(less_one, rate, conjugate=True), squared)
    return growth, turn, ops.complex_mul(held, ops.cast(read, "accumulate"))


class S4D(Mixer):
    """The model's channels themselves are convolved; a gated linear unit follows. Biases are left out."""

    name: ClassVar[str] = "s4d"
    title: ClassVar[str] = "S4D (diagonal state space)"
    template: ClassVar[str] = (
        "P_ij = taps_(i - j) for j <= i, taps_l = 2 Re sum over N of C (exp(dt A) - 1) / A exp(dt A l),  V = X,  "
        "Y = glu(gelu(P V + skip X) W_o)"
    )
    source: ClassVar[str] = "Gu et al. 2022, arXiv 2206.11893; state-spaces/s4 models/s4/s4d.py"
    structure: ClassVar[Structure] = Structure.TOEPLITZ
    carry: ClassVar[type[Carry[Any]]] = Spectrum
    kernels: ClassVar[tuple[str, ...]] = ("fft",)
    causality: ClassVar[str] = "causal"
    indivisible: ClassVar[str] = "the gate after the output projection needs the sum over all channels"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "pairs": Hyperparameter("N", 32, "complex entries of a channel's state, each for itself and its conjugate"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, pairs = m["D"], m["N"]
        filters = {"log_step": (D,), "log_decay": (D, pairs), "frequency": (D, pairs), "read": (D, pairs, 2)}
        return {**filters, "skip": (D,), "w_o": (D, 1, D), "w_g": (D, 1, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (INPUT,)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        x = _channels(ops, read[0])
        return LongConvolution(x, DiagonalFilter(tuple(w[name] for name in PARAMETERS)), aside=(x,)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        x = _channels(ops, read[0])

        def turned(ops: Vocabulary[Any], state: Any, x: Any, *weights: Any) -> Any:
            growth, turn, _ = discretised(ops, *weights)
            size = ops.map("exp", growth)
            factor = ops.concat([ops.mul(size, ops.map(wave, turn)) for wave in ("cos", "sin")], 2)
            return ops.add(ops.complex_mul(state, factor), ops.pad(ops.cast(x, "accumulate"), 3, 0, 2))

        def heard(ops: Vocabulary[Any], state: Any, x: Any, *weights: Any) -> Any:
            _, _, read = discretised(ops, *weights)
            terms = ops.complex_mul(state, read)
            return ops.cast(ops.scale(ops.sum(ops.slice(terms, 3, 0, 1), (2,)), 2), "model")

        weights = tuple(w[name] for name in PARAMETERS)
        state = ops.append(at.cache[0], ops.fused("state update", turned, at.cache[0], x, *weights), 0)
        return Direct(ops.fused("output", heard, state, x, *weights), aside=(x,))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        def activated(ops: Vocabulary[Any], mixed: Any, x: Any, skip: Any) -> Any:
            return ops.map("gelu", ops.add(mixed, ops.mul(x, skip)))

        skip = ops.reshape(w["skip"], (at.sizes["D"], 1, 1))
        y = ops.fused("skip and gelu", activated, mixed, at.aside[0], skip)
        value, gate = (ops.contract("bhle,hed->bld", y, w[name]) for name in ("w_o", "w_g"))

        def gated(ops: Vocabulary[Any], value: Any, gate: Any) -> Any:
            return ops.mul(value, ops.map("sigmoid", gate))

        result: T = ops.fused("gated linear unit", gated, value, gate)
        return result

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((m["D"], m["N"], 2), "accumulate"),)

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["D"], m["D"]

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return 512

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        rate = xp.complex(-xp.exp(w["log_decay"]), w["frequency"])
        factor = xp.exp(w["log_step"])[:, None] * rate
        read = xp.complex(w["read"][..., 0], w["read"][..., 1]) * (xp.exp(factor) - 1) / rate
        taps = 2 * xp.stack([(read * xp.exp(factor * lag)).real.sum(-1) for lag in range(x.shape[1])], -1)
        matrix, values = toeplitz(xp, taps)[None], x.transpose(1, 2)[..., None]
        y = (matrix @ values)[..., 0].transpose(1, 2) + w["skip"] * x
        y = xp.nn.functional.gelu(y, approximate="tanh")
        return Written(matrix, values, y @ w["w_o"][:, 0] / (1 + xp.exp(-(y @ w["w_g"][:, 0]))))


def _channels(ops: Vocabulary[T], x: T) -> T:
    """[B, n, D] as [B, D, n, 1]."""
    b, n, d = ops.shape(x)
    return ops.reshape(ops.permute(x, (0, 2, 1)), (b, d, n, 1))


s4d = S4D()
