"""The spectrum carry: tokens are mixed by a Fourier transform along the sequence."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Self, TypeVar

from costmodel.carry import Carry
from costmodel.dims import Dim, divide
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class Spectrum(Carry[T]):
    """P is diagonal in the basis of a Fourier transform along the sequence, or is that transform."""

    kind: ClassVar[str] = "spectrum"

    @abstractmethod
    def apart(self, ops: Vocabulary[T], line: Axis) -> T:
        """The mixed values [B, H, n, e] of this rank's tokens, where each rank of a line has an equal stretch.

        The number of tokens of a stretch is a multiple of the number of ranks.
        """


class Filter(ABC, Generic[T]):
    """What a long convolution's taps are made of."""

    @abstractmethod
    def parameters(self) -> tuple[T, ...]:
        """Weights that differ from channel to channel, [channels, ...] each."""

    @abstractmethod
    def on(self, parameters: Sequence[T]) -> Self:
        """The same for some of the channels."""

    @abstractmethod
    def taps(self, ops: Vocabulary[T], places: T) -> T:
        """The taps [channels, m], at accumulation precision, for tokens ``places`` [m] ago."""


@dataclass(frozen=True)
class LongConvolution(Spectrum[T]):
    """y_i = sum over j <= i of taps_(i - j) x_j for each channel: x [B, channels, n, 1].

    Whole, by real transforms of 2 n numbers, x and taps followed by n zeros, as in all implementations (for one,
    HazyResearch/safari ``fftconv_ref``): 2 n is even for any n, and nothing wraps round.

    Apart, by a right-angle convolution, which needs no zeros: with w = exp(i pi / (2 L)), the cyclic convolution of
    w^j x_j and w^j taps_j has at place j the sums w^j (y_j + w^L (what wraps round)), and w^L = i, so that y_j is a
    real part (Crandall & Pomerance, Prime Numbers, section 9.5.3). A complex transform of L numbers costs as much as a
    real one of 2 L, and L bins, unlike L + 1, divide evenly over ranks.
    """

    x: T
    filter: Filter[T]

    def streams(self) -> tuple[T, ...]:
        return (self.x,)

    def parameters(self) -> tuple[T, ...]:
        return self.filter.parameters()

    def on(self, streams: Sequence[T], parameters: Sequence[T]) -> Self:
        return replace(self, x=streams[0], filter=self.filter.on(parameters))

    def channels(self, ops: Vocabulary[T]) -> T:
        """x [B, channels, n, 1]."""
        return self.x

    def product(self, ops: Vocabulary[T], seen: T, heard: T) -> T:
        """The result's bins [B, channels, F, 2], from those of x, and of the taps [channels, F, 2]."""
        return ops.complex_mul(seen, heard)

    def whole(self, ops: Vocabulary[T]) -> T:
        x = self.channels(ops)
        b, h, n, _ = ops.shape(x)
        x = ops.cast(ops.reshape(x, (b, h, n)), "accumulate")
        taps = self.filter.taps(ops, counted(ops, n))
        seen, heard = (ops.real_fft(ops.pad(t, axis, 0, 2 * n), axis) for t, axis in ((x, 2), (taps, 1)))
        mixed = ops.inverse_real_fft(self.product(ops, seen, heard), 2)
        return ops.cast(ops.reshape(ops.slice(mixed, 2, 0, n), (b, ops.shape(mixed)[1], n, 1)), "model")

    def apart(self, ops: Vocabulary[T], line: Axis) -> T:
        x = self.channels(ops)
        b, h, n, _ = ops.shape(x)
        cut = CutTransform.of(ops, n, line)
        p, m = cut.grid
        turn = unit_numbers(ops, cut.places, math.pi / 2 / cut.length)

        def turned(real: T) -> T:
            return ops.mul(ops.reshape(real, (*ops.shape(real), 1)), turn)

        x = ops.all_to_all(ops.reshape(x, (b, h, 1, n)), line, split=3, concat=2)
        taps = self.filter.taps(ops, ops.reshape(cut.places, (p * m,)))
        filters = ops.shape(taps)[0]
        seen = cut.forward(ops, turned(ops.cast(x, "accumulate")))
        heard = cut.forward(ops, turned(ops.reshape(taps, (1, filters, p, m))))
        bins = self.product(ops, ops.reshape(seen, (b, h, n, 2)), ops.reshape(heard, (filters, n, 2)))
        back = cut.back(ops, ops.reshape(bins, (b, h, 1, n, 2)))
        mixed = ops.cast(real_part(ops, ops.complex_mul(back, turn, conjugate=True)), "model")
        return ops.reshape(ops.all_to_all(mixed, line, split=2, concat=3), (b, h, n, 1))


@dataclass(frozen=True)
class Transform(Spectrum[T]):
    """The real part of the Fourier transform itself: of complex z [B, channels, n, 2], [B, channels, n, 1]."""

    along: ClassVar[tuple[str, ...]] = ("z",)

    z: T

    def whole(self, ops: Vocabulary[T]) -> T:
        return ops.cast(ops.slice(ops.fft(self.z, 2), 3, 0, 1), "model")

    def apart(self, ops: Vocabulary[T], line: Axis) -> T:
        b, h, n, _ = ops.shape(self.z)
        cut = CutTransform.of(ops, n, line)
        z = ops.all_to_all(ops.reshape(self.z, (b, h, 1, n, 2)), line, split=3, concat=2)
        mine = ops.cast(real_part(ops, cut.forward(ops, z)), "model")
        bins = ops.permute(ops.all_to_all(mine, line, split=3, concat=2), (0, 1, 3, 2))
        return ops.reshape(bins, (b, h, n, 1))


@dataclass(frozen=True)
class CutTransform(Generic[T]):
    """A transform of L = P n complex numbers over P ranks, in two steps with one exchange between them.

    With j = n j1 + j2 and k = k1 + P k2 (Cooley & Tukey 1965, doi 10.1090/S0025-5718-1965-0178586-1): transforms of
    P numbers over j1, a product with exp(-2 pi i j2 k1 / L), transforms of n numbers over j2. Bins stay in that order,
    which suits products of spectra: rank k1 has those of all k2.

    Attributes:
        places: j of the numbers that this rank has before the exchange [P, n / P], its rows j1.
        twiddles: exp(2 pi i j2 k1 / L) [P, n / P, 2], its rows k1.
    """

    line: Axis
    length: Dim
    grid: tuple[Dim, Dim]
    places: T
    twiddles: T

    @classmethod
    def of(cls, ops: Vocabulary[T], n: Dim, line: Axis) -> Self:
        """For ranks of n tokens each."""
        p, m = line.size, divide(n, line.size)
        length = p * n
        rows = ops.reshape(counted(ops, p), (p, 1))
        columns = counted(ops, m, line.rank * m)
        twiddles = unit_numbers(ops, ops.mul(rows, columns), 2 * math.pi / length)
        return cls(line, length, (p, m), ops.add(ops.scale(rows, n), columns), twiddles)

    def forward(self, ops: Vocabulary[T], z: T) -> T:
        """Bins [..., 1, n, 2] of rank k1, from z [B, H, P, n / P, 2] at ``places``."""
        partial = ops.complex_mul(ops.fft(z, 2), self.twiddles, conjugate=True)
        return ops.fft(ops.all_to_all(partial, self.line, split=2, concat=3), 3)

    def back(self, ops: Vocabulary[T], bins: T) -> T:
        """The inverse of ``forward``."""
        partial = ops.all_to_all(ops.inverse_fft(bins, 3), self.line, split=3, concat=2)
        return ops.inverse_fft(ops.complex_mul(partial, self.twiddles), 2)


def counted(ops: Vocabulary[T], n: Dim, start: Dim = 0) -> T:
    """start, start + 1, ... [n], at accumulation precision."""
    ones = ops.ones((n,), "accumulate")
    return ops.add(ops.cumsum(ones, 0, exclusive=True), ops.scale(ones, start))


def unit_numbers(ops: Vocabulary[T], places: T, angle: Dim) -> T:
    """exp(i angle places): complex [..., 2] for places [...]."""

    def body(ops: Vocabulary[Any], places: Any) -> Any:
        angles = ops.reshape(ops.scale(places, angle), (*ops.shape(places), 1))
        return ops.concat([ops.map("cos", angles), ops.map("sin", angles)], len(ops.shape(places)))

    result: T = ops.fused("unit numbers", body, places)
    return result


def real_part(ops: Vocabulary[T], z: T) -> T:
    """Real parts [...] of complex numbers [..., 2]."""
    shape = ops.shape(z)
    return ops.reshape(ops.slice(z, len(shape) - 1, 0, 1), shape[:-1])
