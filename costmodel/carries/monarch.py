"""Long convolutions on matrix units: Fourier transforms as products with small DFT matrices (FlashFFTConv).

A transform of N = n_1 n_2 ... numbers is a product with the DFT matrix of n_1 numbers, one with roots of unity, and
transforms of the other N / n_1 numbers (Fu et al. 2023, arXiv 2311.05908, sections 2 and 3.1;
HazyResearch/flash-fft-conv): 8 N sum(n_i) FLOP of matrix units and 6 N of others for each factor but the last, where
the FFT has 5 N log2(N). Sides are powers of 2, as equal as can be, so that N may be up to twice the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from costmodel.carries.spectrum import Filter, LongConvolution, counted, real_part, unit_numbers
from costmodel.dims import Dim, ceil_div, doublings, exp2, product
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")

#: Factors of a transform in one kernel, and those that are done by kernels of their own before it.
FACTORS: Mapping[str, tuple[int, int]] = {"monarch": (3, 0), "monarch-outer": (3, 1)}

#: Implementations of long convolutions.
KERNELS = ("fft", *FACTORS)

#: Tokens of a sequence at most: 2^15 complex numbers of 4 bytes are 128 KiB, which fit on a chip's multiprocessor
#: (section 3.3; an A100's has 164 KiB). The outer factor is at most 128, as in the repository.
LONGEST: Mapping[str, int] = {"monarch": 2**15, "monarch-outer": 2**22}


def long_convolution(x: T, taps: Filter[T], kernel: str, aside: tuple[T, ...]) -> LongConvolution[T]:
    """The long convolution of x [B, channels, n, 1] by one of ``KERNELS``."""
    if kernel in FACTORS:
        return MonarchConvolution(x, taps, FACTORS[kernel], aside=aside)
    return LongConvolution(x, taps, aside=aside)


@dataclass(frozen=True)
class MonarchConvolution(LongConvolution[T]):
    """The whole sequence by a right-angle convolution (see ``LongConvolution``) of N complex numbers.

    A real transform of 2 N numbers costs as much; the repository has that one. Numbers are of the model's precision,
    and gated values are multiplied outside.

    Attributes:
        factors: how many are in one kernel with all that is between, and how many are outside.
    """

    factors: tuple[int, int]

    def whole(self, ops: Vocabulary[T]) -> T:
        _, h, n, _ = ops.shape(self.x)
        inside, outside = self.factors
        transform = Monarch.of(ops, n, inside + outside)
        taps = ops.cast(ops.reshape(self.filter.taps(ops, counted(ops, n)), (1, h, n, 1)), "model")
        spectrum = ops.fused("spectrum of taps", transform.turned_forward, taps, *transform.constants)

        def inner(ops: Vocabulary[Any], z: Any, spectrum: Any, *constants: Any) -> Any:
            own = transform.on(constants)
            return own.back(ops, ops.complex_mul(own.forward(ops, z, outside), spectrum), outside)

        def all_of_it(ops: Vocabulary[Any], x: Any, spectrum: Any, *constants: Any) -> Any:
            own = transform.on(constants)
            return own.real(ops, inner(ops, own.turned(ops, x), spectrum, *constants), n)

        result: T
        if not outside:
            result = ops.fused("Monarch convolution", all_of_it, self.x, spectrum, *transform.constants, family="fft")
            return result
        z = ops.fused("outer factor", transform.outer_forward, self.x, *transform.constants, family="fft")
        z = ops.fused("Monarch convolution", inner, z, spectrum, *transform.constants, family="fft")
        return self._outer_back(ops, z, transform)

    def _outer_back(self, ops: Vocabulary[T], z: T, transform: Monarch[T]) -> T:
        n = ops.shape(self.x)[2]

        def last(ops: Vocabulary[Any], z: Any, *constants: Any) -> Any:
            own = transform.on(constants)
            return own.real(ops, own.step_back(ops, z, 0), n)

        result: T = ops.fused("outer factor back", last, z, *transform.constants, family="fft")
        return result


@dataclass(frozen=True)
class Monarch(Generic[T]):
    """Transforms of N complex numbers [B, H, N, 2] in factors; bins stay in the order that these give.

    With N = n_1 M, j = M j1 + j2 and k = k1 + n_1 k2, as in ``costmodel.carries.spectrum.CutTransform``.

    Attributes:
        sides: n_1, n_2, ...
        constants: exp(i pi j / (2 N)) [N, 2]; DFT matrices exp(-2 pi i j k / n_i) [n_i, n_i, 2, 2], as real matrices of
            complex numbers; roots of unity exp(-2 pi i k1 j2 / (n_i M_i)) [n_i, M_i, 2] of all but the last.
    """

    sides: tuple[Dim, ...]
    constants: tuple[T, ...]

    @classmethod
    def of(cls, ops: Vocabulary[T], n: Dim, factors: int) -> Self:
        """For at least n numbers."""
        power = doublings(n)
        sides = tuple(exp2(ceil_div(power - place, factors)) for place in range(factors))
        length = product(sides)
        turn = ops.cast(unit_numbers(ops, counted(ops, length), math.pi / 2 / length), "model")
        matrices = [_dft(ops, side) for side in sides]
        roots = [_roots(ops, side, product(sides[place + 1 :])) for place, side in enumerate(sides[:-1])]
        return cls(sides, (turn, *matrices, *roots))

    def on(self, constants: tuple[Any, ...]) -> Monarch[Any]:
        """The same within a kernel, to which the constants are given."""
        return Monarch(self.sides, constants)

    def turned(self, ops: Vocabulary[T], x: T) -> T:
        """Real x [B, H, n, 1], zeros after it, times exp(i pi j / (2 N))."""
        return ops.mul(ops.pad(x, 2, 0, product(self.sides)), self.constants[0])

    def real(self, ops: Vocabulary[T], z: T, n: Dim) -> T:
        """The first n real parts [B, H, n, 1] after the turn back."""
        b, h, _, _ = ops.shape(z)
        real = real_part(ops, ops.complex_mul(z, self.constants[0], conjugate=True))
        return ops.reshape(ops.slice(real, 2, 0, n), (b, h, n, 1))

    def turned_forward(self, ops: Vocabulary[T], x: T, *constants: T) -> T:
        own = self.on(constants)
        result: T = own.forward(ops, own.turned(ops, x), 0)
        return result

    def outer_forward(self, ops: Vocabulary[T], x: T, *constants: T) -> T:
        own = self.on(constants)
        result: T = own.step(ops, own.turned(ops, x), 0)
        return result

    def forward(self, ops: Vocabulary[T], z: T, first: int) -> T:
        """The factors from one on."""
        for place in range(first, len(self.sides)):
            z = self.step(ops, z, place)
        return z

    def back(self, ops: Vocabulary[T], z: T, first: int) -> T:
        """The inverse of ``forward``."""
        for place in reversed(range(first, len(self.sides))):
            z = self.step_back(ops, z, place)
        return z

    def step(self, ops: Vocabulary[T], z: T, place: int) -> T:
        """One factor: a DFT along it, and roots of unity for those after it."""
        shape = ops.shape(z)
        matrix, roots = self._of(place)
        z = ops.contract("bhrjmx,jkxy->bhrkmy", ops.reshape(z, self._cut(shape, place)), matrix)
        return ops.reshape(z if roots is None else ops.complex_mul(z, roots), shape)

    def step_back(self, ops: Vocabulary[T], z: T, place: int) -> T:
        """The inverse of ``step``: the matrix of a conjugate is the transposed one."""
        shape = ops.shape(z)
        matrix, roots = self._of(place)
        z = ops.reshape(z, self._cut(shape, place))
        if roots is not None:
            z = ops.complex_mul(z, roots, conjugate=True)
        z = ops.contract("bhrkmy,jkxy->bhrjmx", z, matrix)
        return ops.reshape(ops.scale(z, 1 / self.sides[place]), shape)

    def _cut(self, shape: tuple[Dim, ...], place: int) -> tuple[Dim, ...]:
        before, after = product(self.sides[:place]), product(self.sides[place + 1 :])
        return (*shape[:2], before, self.sides[place], after, 2)

    def _of(self, place: int) -> tuple[T, T | None]:
        """The DFT matrix and the roots of unity of a factor."""
        count = len(self.sides)
        roots = self.constants[1 + count + place] if place + 1 < count else None
        return self.constants[1 + place], roots


def _dft(ops: Vocabulary[T], n: Dim) -> T:
    """The DFT matrix [j, k, 2, 2] as real matrices, by which rows (real, imaginary) are multiplied."""
    places = counted(ops, n)
    z = unit_numbers(ops, ops.mul(ops.reshape(places, (n, 1)), places), -2 * math.pi / n)

    def body(ops: Vocabulary[Any], z: Any) -> Any:
        real, imaginary = (ops.reshape(part, (n, n, 1, 1)) for part in ops.halves(z, 2))
        rows = ops.concat([real, imaginary], 3), ops.concat([ops.map("neg", imaginary), real], 3)
        return ops.cast(ops.concat(rows, 2), "model")

    result: T = ops.fused("DFT matrix", body, z)
    return result


def _roots(ops: Vocabulary[T], side: Dim, after: Dim) -> T:
    """Roots of unity exp(-2 pi i k1 j2 / (side after)) [side, after, 2]."""
    places = ops.mul(ops.reshape(counted(ops, side), (side, 1)), counted(ops, after))
    return ops.cast(unit_numbers(ops, places, -2 * math.pi / (side * after)), "model")
