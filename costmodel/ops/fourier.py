"""Fourier transforms along one axis. A complex number is a pair on a last axis of size 2: real, imaginary.

FLOPs are benchFFT's (www.fftw.org/speed/method.html): 5 n log2(n) for a complex transform of n numbers, half of that
for a real one, whatever the algorithm. A transform reads and writes its operands once; one that does not fit on chip
makes more passes, which is left to the family's measured efficiency. A factor 1/n is applied on the way.

Rounding: a kernel computes at accumulation precision, but hands out the precision of its input, so that a method that
wants an exact spectrum casts first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, Shape, divide, is_number, log2, minimum, product
from costmodel.ops.layout import replace
from costmodel.ops.pointwise import broadcast
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


def paired(x: Tensor) -> Shape:
    """The shape of complex numbers without their last axis.

    Raises:
        ValueError: when the last axis is not of size 2.
    """
    if not is_number(x.shape[-1], 2):
        raise ValueError(f"complex numbers are pairs on a last axis of size 2, which shape {x.shape} has not")
    return x.shape[:-1]


def copied(x: Tensor, axis: int, pairs: int) -> dict[str, Dim]:
    """Bytes of an operand with axes both before and after the transformed one: no stride takes it from one transform
    to the next, and it is copied first.

    Args:
        pairs: 1 where its last axis holds complex numbers.
    """
    after = product(x.shape[axis + 1 : len(x.shape) - pairs])
    return {"left": minimum(product(x.shape[:axis]) - 1, 1) * minimum(after - 1, 1) * x.bytes}


@dataclass(frozen=True)
class FFT(Primitive):
    """Complex transform: y_k = sum over j of x_j exp(-2 pi i j k / n) along an axis; x and y [..., n, ..., 2].

    Attributes:
        inverse: with the opposite sign in the exponent.
        divided: by n, as the inverse of a transform that is not.
    """

    axis: int
    inverse: bool = False
    divided: bool = False

    family = "fft"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec((*paired(inputs[0]), 2), inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"fft": 5 * divide(inputs[0].elements, 2) * log2(inputs[0].shape[self.axis])}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": divide(inputs[0].elements, 2 * inputs[0].shape[self.axis]), **copied(inputs[0], self.axis, 1)}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return ops.apply(FFT(self.axis, not self.inverse, self.divided), gradients[0])


@dataclass(frozen=True)
class RealFFT(Primitive):
    """Transform of n real numbers along an axis, n even: x [..., n, ...] -> y_0 ... y_{n/2} in [..., n/2 + 1, ..., 2].

    The others are these ones' conjugates.
    """

    axis: int

    family = "fft"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x = inputs[0]
        return (Spec((*replace(x.shape, self.axis, divide(x.shape[self.axis], 2) + 1), 2), x.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"fft": divide(5 * inputs[0].elements, 2) * log2(inputs[0].shape[self.axis])}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": divide(inputs[0].elements, inputs[0].shape[self.axis]), **copied(inputs[0], self.axis, 0)}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        # The inverse takes every inner bin twice, for its conjugate too, and divides by n; the adjoint does neither.
        n = ops.shape(inputs[0])[self.axis]
        (weighted,) = ops.apply(ScaleBins(self.axis, n, divide(n, 2)), gradients[0])
        return ops.apply(InverseRealFFT(self.axis), weighted)


@dataclass(frozen=True)
class InverseRealFFT(Primitive):
    """The n real numbers whose transform has these bins 0 ... n/2: [..., n/2 + 1, ..., 2] -> [..., n, ...].

    Imaginary parts of the first and last bin, which such a transform has not, are not read.
    """

    axis: int

    family = "fft"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        shape = paired(inputs[0])
        return (Spec(replace(shape, self.axis, 2 * (shape[self.axis] - 1)), inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"fft": divide(5 * outputs[0].elements, 2) * log2(outputs[0].shape[self.axis])}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": divide(outputs[0].elements, outputs[0].shape[self.axis]), **copied(inputs[0], self.axis, 1)}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        n = ops.shape(gradients[0])[self.axis]
        (bins,) = ops.apply(RealFFT(self.axis), gradients[0])
        return ops.apply(ScaleBins(self.axis, 1 / n, 2 / n), bins)


@dataclass(frozen=True)
class ScaleBins(Primitive):
    """Bins 0 ... n/2 of a real transform, the first and the last times one number, those between times another."""

    axis: int
    ends: Dim
    inner: Dim

    family = "elementwise"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec((*paired(inputs[0]), 2), inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": outputs[0].elements}


@dataclass(frozen=True)
class ComplexProduct(Primitive):
    """a b of complex numbers [..., 2], or a times the conjugate of b, with broadcasting; 6 FLOP a product."""

    conjugate: bool = False

    family = "elementwise"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec((*broadcast([paired(x) for x in inputs]), 2), inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": 3 * outputs[0].elements}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        (a, b), g = inputs, gradients[0]
        others = (a, g) if self.conjugate else (g, a)  # conj(g) a, or g conj(a)
        return (
            lambda: ops.sum_to(ops.complex_mul(g, b, not self.conjugate), ops.shape(a)),
            lambda: ops.sum_to(ops.complex_mul(*others, conjugate=True), ops.shape(b)),
        )
