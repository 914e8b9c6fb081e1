"""Distributed Fourier transform: the transform itself is cut over ranks, which exchange its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.spectrum import Spectrum
from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_stretches, whole_pieces

T = TypeVar("T")


class DistributedFFT(Strategy):
    """All-to-all before, between and after the two steps of the transform.

    A long convolution makes four (two of them of complex numbers), and one for its filters, where Ulysses makes two
    of real numbers; but no channels are cut, so that the ranks may be more than divide them.
    """

    name: ClassVar[str] = "distributed-fft"
    title: ClassVar[str] = "distributed FFT: two steps, transposed by all-to-all"
    source: ClassVar[str] = (
        "Cooley & Tukey 1965, doi 10.1090/S0025-5718-1965-0178586-1; transposed order as FFTW's distributed transforms"
    )
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Spectrum,)
    axes: ClassVar[tuple[str, ...]] = ("context",)

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield from equal_stretches(at)
        rule = "{length} tokens do not divide into {context} x {context} pieces"
        yield whole_pieces(at, at.context * at.context, rule)
        yield Requirement(at.kernel == "fft", "ranks cut the FFT itself, not the transforms of the {kernel} kernel")

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Spectrum[T]) -> T:
        return carry.apart(ops, axes["context"])


distributed_fft = DistributedFFT()
