"""S4: a state space for each channel whose transition is diagonal plus low rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.monarch import long_convolution
from costmodel.carries.spectrum import Filter, counted, unit_numbers
from costmodel.carry import Carry
from costmodel.dims import Shape, ceil_div
from costmodel.mixer import Site, Sizes, Weights
from costmodel.mixers.s4d import S4D
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import by_channel

T = TypeVar("T")

PARAMETERS = ("log_step", "log_decay", "frequency", "low_rank", "write", "read")


@dataclass(frozen=True)
class Given(Filter[T]):
    """Taps [channels, n] that are there already."""

    made: T

    def parameters(self) -> tuple[T, ...]:
        return (self.made,)

    def on(self, parameters: Sequence[T]) -> Self:
        return replace(self, made=parameters[0])

    def taps(self, ops: Vocabulary[T], places: T) -> T:
        return self.made


@dataclass(frozen=True)
class CauchyConvolution(Carry[T]):
    """The long convolution of x [B, H, n, 1] with taps found from their own spectrum, all at once.

    With A = Lambda - p p^*, the bilinear rule and C' = C (1 - A'^m), the transform of the first m taps is, at w =
    exp(-2 pi i k / m), 2 dt (s_cb - h s_cp s_pb / (1 + h s_pp)) with h = dt (1 + w), and with the Cauchy sums s_uv =
    sum over n of u_n v_n / (2 (1 - w) - h Lambda_n) (Gu et al. 2021, arXiv 2111.00396, theorem 3 and algorithm 1,
    multiplied out so that nothing is infinite at w = -1). m is n, or n + 1 where that is even.

    Attributes:
        weights: ``PARAMETERS``: log_step [H], log_decay and frequency [H, N], and p, b, C' [H, N, 2] (complex).
        kernel: of the convolution, one of ``costmodel.carries.monarch.KERNELS``.
    """

    along: ClassVar[tuple[str, ...]] = ("x",)
    of_heads: ClassVar[tuple[str, ...]] = ("weights",)
    kind: ClassVar[str] = "a long filter that is made whole"
    x: T
    weights: tuple[T, ...]
    kernel: str

    def whole(self, ops: Vocabulary[T]) -> T:
        n = ops.shape(self.x)[2]
        half = ceil_div(n, 2)
        nodes = unit_numbers(ops, counted(ops, half + 1), -math.pi / half)
        sums = ops.fused("Cauchy sums", _cauchy, nodes, *self.weights)
        bins = ops.fused("Woodbury", _woodbury, nodes, self.weights[0], *sums)
        taps = ops.slice(ops.inverse_real_fft(bins, 1), 1, 0, n)
        return long_convolution(self.x, Given(taps), self.kernel, ()).whole(ops)


def _cauchy(
    ops: Vocabulary[T], nodes: T, log_step: T, log_decay: T, frequency: T, low_rank: T, write: T, read: T
) -> tuple[T, ...]:
    """s_cb, s_cp, s_pb, s_pp [H, F, 2], each entry with its conjugate's: a sum of fractions with real coefficients.

    v / (g - h r) + v^* / (g - h r^*) = 2 (Re(v) g - Re(v r^*) h) / (g^2 - 2 Re(r) g h + |r|^2 h^2).
    """
    h, pairs = ops.shape(log_decay)
    bins = ops.shape(nodes)[0]
    real, imaginary = _rates(ops, log_step, log_decay, frequency)
    over, under = _gaps(ops, nodes)
    squared = ops.add(ops.map("square", real), ops.map("square", imaginary))
    below = ops.map("sub", ops.complex_mul(over, over), ops.mul(ops.complex_mul(over, under), ops.scale(real, 2)))
    below = ops.add(below, ops.mul(ops.complex_mul(under, under), squared))
    size = ops.sum(ops.map("square", below), (3,))

    def summed(a: T, b: T, conjugate: bool = False) -> T:
        v = ops.reshape(ops.complex_mul(a, b, conjugate), (h, pairs, 1, 2))
        v_real, v_imaginary = ops.halves(v, 3)
        turned = ops.add(ops.mul(v_real, real), ops.mul(v_imaginary, imaginary))
        above = ops.map("sub", ops.mul(over, v_real), ops.mul(under, turned))
        terms = ops.map("div", ops.complex_mul(above, below, conjugate=True), size)
        return ops.reshape(ops.scale(ops.sum(terms, (1,)), 2), (h, bins, 2))

    p, b, c = (ops.cast(weight, "accumulate") for weight in (low_rank, write, read))
    return summed(c, b), summed(c, p), summed(b, p, conjugate=True), summed(p, p, conjugate=True)


def _rates(ops: Vocabulary[T], log_step: T, log_decay: T, frequency: T) -> tuple[T, T]:
    """Real and imaginary part [H, N, 1, 1] of dt Lambda."""
    h, pairs = ops.shape(log_decay)
    step = ops.reshape(ops.map("exp", ops.cast(log_step, "accumulate")), (h, 1, 1, 1))
    decay = ops.map("neg", ops.map("exp", ops.cast(log_decay, "accumulate")))
    rates = (ops.reshape(part, (h, pairs, 1, 1)) for part in (decay, ops.cast(frequency, "accumulate")))
    real, imaginary = (ops.mul(rate, step) for rate in rates)
    return real, imaginary


def _gaps(ops: Vocabulary[T], nodes: T) -> tuple[T, T]:
    """2 (1 - w) and 1 + w, complex [F, 2], of nodes w."""
    real, imaginary = ops.halves(nodes, 1)
    over = ops.concat([ops.map("complement", real), ops.map("neg", imaginary)], 1)
    return ops.scale(over, 2), ops.concat([ops.shift(real, 1), imaginary], 1)


def _woodbury(ops: Vocabulary[T], nodes: T, log_step: T, cb: T, cp: T, pb: T, pp: T) -> T:
    """The spectrum of the taps [H, F, 2]."""
    step = ops.reshape(ops.map("exp", ops.cast(log_step, "accumulate")), (ops.shape(cb)[0], 1, 1))
    _, under = _gaps(ops, nodes)
    pp_real, pp_imaginary = ops.halves(ops.mul(ops.complex_mul(pp, under), step), 2)
    below = ops.concat([ops.shift(pp_real, 1), pp_imaginary], 2)
    above = ops.mul(ops.complex_mul(ops.complex_mul(cp, pb), under), step)
    size = ops.sum(ops.map("square", below), (2,))
    less = ops.map("div", ops.complex_mul(above, below, conjugate=True), size)
    return ops.scale(ops.mul(ops.map("sub", cb, less), step), 2)


def _step(ops: Vocabulary[T], state: T, x: T, log_step: T, log_decay: T, frequency: T, low_rank: T, write: T) -> T:
    """The state A' s + B' x [B, H, N, 2] of one token x [B, H, 1, 1], without its conjugate half.

    With h = dt / 2 and G = 1 / (1 - h Lambda), by the Woodbury identity: r = (1 + h Lambda) s - h p (p^* s) + dt b x
    and A' s + B' x = G r - G p h (p^* G r) / (1 + h p^* G p), as p^* of both halves is a real number.
    """
    h, pairs = ops.shape(log_decay)
    half = ops.scale(ops.concat([*_rates(ops, log_step, log_decay, frequency)], 3), 0.5)
    real, imaginary = ops.halves(ops.reshape(half, (h, pairs, 2)), 2)
    step = ops.reshape(ops.map("exp", ops.cast(log_step, "accumulate")), (h, 1, 1))
    p, b = (ops.cast(weight, "accumulate") for weight in (low_rank, write))
    less = ops.scale(ops.mul(p, step), 0.5)
    held = ops.concat([ops.map("complement", real), imaginary], 2)
    held = ops.map("div", held, ops.sum(ops.map("square", held), (2,)))

    def along(y: T) -> T:
        """p^* y over both halves."""
        axis = len(ops.shape(y)) - 1
        return ops.scale(ops.sum(ops.slice(ops.complex_mul(y, p, conjugate=True), axis, 0, 1), (axis - 1,)), 2)

    grown = ops.complex_mul(state, ops.concat([ops.shift(real, 1), imaginary], 2))
    driven = ops.add(ops.map("sub", grown, ops.mul(along(state), less)), ops.mul(ops.mul(b, step), x))
    kept, turned = ops.complex_mul(driven, held), ops.complex_mul(less, held)
    return ops.map("sub", kept, ops.mul(turned, ops.map("div", along(kept), ops.shift(along(turned), 1))))


def _read(ops: Vocabulary[T], state: T, read: T) -> T:
    """The output [B, H, 1, 1] of a state: C over both halves."""
    heard = ops.slice(ops.complex_mul(state, ops.cast(read, "accumulate")), 3, 0, 1)
    return ops.cast(ops.scale(ops.sum(heard, (2,)), 2), "model")


def step_read(xp: Any, w: Weights, tokens: int) -> Any:
    """The C [D, N, 2] that decoding reads with, of weights C' that were trained for so many tokens.

    Args:
        xp: the namespace of array functions (``torch``), of which w, whole, are arrays in float64.
    """
    transition, _ = _system(xp, w)
    row = _both(xp, w["read"])[:, None]
    one = xp.eye(row.shape[2], dtype=row.dtype)
    row = row @ xp.linalg.inv(one - xp.linalg.matrix_power(transition, tokens + tokens % 2))
    return xp.view_as_real(row[:, 0, : w["read"].shape[1]])


def _system(xp: Any, w: Weights) -> tuple[Any, Any]:
    """A' [D, 2 N, 2 N] and B' [D, 2 N, 1], of both halves of the states."""
    rate = xp.complex(-xp.exp(w["log_decay"]), w["frequency"])
    rate, p, b = xp.cat((rate, rate.conj()), 1), _both(xp, w["low_rank"]), _both(xp, w["write"])
    step = xp.exp(w["log_step"])[:, None, None]
    a = step * (xp.diag_embed(rate) - p[:, :, None] * p.conj()[:, None])
    one = xp.eye(rate.shape[1], dtype=rate.dtype)
    held = xp.linalg.inv(one - a / 2)
    return held @ (one + a / 2), held @ (step * b[..., None])


def _both(xp: Any, weight: Any) -> Any:
    """Complex weights [D, 2 N], the second half conjugates of the first."""
    half = xp.complex(*weight.unbind(-1))
    return xp.cat((half, half.conj()), 1)


class S4(S4D):
    """Of rank 1. The read weights are C', as trained for the length of the sequence.

    Every rank finds a channel's taps from all of their spectrum, so that strategies that cut it do not apply. Decoding
    keeps N complex numbers of a channel, of which the other half are the conjugates, steps with the diagonal and the
    low-rank part of A' ("linear" in the code), and reads with C, found from C' once (``step_read``). The code can also
    bring A' to its eigenvectors, whose step is shorter; but those of HiPPO-LegS are of no use in finite precision (Gu
    et al. 2021, lemma 3.2), and as its eigenvalues are real, no half could be left out.
    """

    name: ClassVar[str] = "s4"
    title: ClassVar[str] = "S4 (diagonal plus low-rank state space)"
    template: ClassVar[str] = (
        "P_ij = C A'^(i - j) B' for j <= i of each channel, A' = (1 - dt A / 2)^-1 (1 + dt A / 2), "
        "B' = (1 - dt A / 2)^-1 dt B, A = Lambda - p p^*,  V = X,  Y = glu(gelu(P V + skip X) W_o)"
    )
    source: ClassVar[str] = "Gu et al. 2021, arXiv 2111.00396; state-spaces/s4 models/s4/s4.py (SSMKernelDPLR)"
    carry: ClassVar[type[Carry[Any]]] = CauchyConvolution
    unpadded: ClassVar[str] = "the weights are C (1 - A'^L), of a sequence of just so many tokens"

    def weights(self, m: Sizes) -> dict[str, Shape]:
        entries = m["D"], m["N"]
        return {**super().weights(m), "low_rank": (*entries, 2), "write": (*entries, 2)}

    def decode_weights(self, m: Sizes) -> dict[str, Shape]:
        shapes = self.weights(m)
        return {"step_read": shapes.pop("read"), **shapes}

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        x = by_channel(ops, read[0])
        return CauchyConvolution(x, tuple(w[name] for name in PARAMETERS), at.kernel, aside=(x,)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        x, weights = by_channel(ops, read[0]), (w[name] for name in PARAMETERS[:-1])
        state = ops.append(at.cache[0], ops.fused("state update", _step, at.cache[0], x, *weights), 0)
        return Direct(ops.fused("output", _read, state, w["step_read"]), aside=(x,))

    def written_taps(self, xp: Any, w: Weights, n: int) -> Any:
        transition, column = _system(xp, w)
        row = _both(xp, w["step_read"] if "step_read" in w else step_read(xp, w, n))[:, None]
        taps = []
        for _ in range(n):
            taps.append((row @ column).real[:, 0, 0])
            column = transition @ column
        return xp.stack(taps, -1)


s4 = S4()
