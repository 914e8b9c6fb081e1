"""FNet: tokens are mixed by a Fourier transform, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.spectrum import Spectrum, Transform
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.errors import InputError
from costmodel.mixer import INPUT, Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class FNet(Mixer):
    """A complex transform along the width, then one along the sequence, as the published code has it; both at
    accumulation precision.
    """

    name: ClassVar[str] = "fnet"
    title: ClassVar[str] = "FNet (Fourier transform)"
    template: ClassVar[str] = "P_jk = exp(-2 pi i j k / L),  V = Fourier transform of X along D,  Y = Re P V"
    source: ClassVar[str] = "Lee-Thorp et al. 2021, arXiv 2105.03824; transformers modeling_fnet.py"
    structure: ClassVar[Structure] = Structure.STATIC
    carry: ClassVar[type[Carry[Any]]] = Spectrum
    kernels: ClassVar[tuple[str, ...]] = ("fft",)
    causality: ClassVar[str] = "full"
    indivisible: ClassVar[str] = "there is no projection that could be cut"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {}

    def weights(self, m: Sizes) -> dict[str, Shape]:
        return {}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (INPUT,)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        b, n, d = ops.shape(read[0])
        x = ops.pad(ops.cast(ops.reshape(read[0], (b, n, d, 1)), "accumulate"), 3, 0, 2)
        return Transform(ops.permute(ops.fft(x, 2), (0, 2, 1, 3))), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        raise InputError("the pass", "decode", "fnet sees all tokens at once", "choose forward or train")

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        b, d, n, _ = ops.shape(mixed)
        return ops.permute(ops.reshape(mixed, (b, d, n)), (0, 2, 1))

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return ()

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["D"], m["D"]

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return 768

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        along, across = (_matrix(xp, size) for size in x.shape[1:])
        values = x.to(across.dtype) @ across
        values = values.transpose(1, 2)[..., None]
        return Written(along[None, None], values, (along @ values)[..., 0].real.transpose(1, 2))


def _matrix(xp: Any, n: int) -> Any:
    """exp(-2 pi i j k / n) [n, n]."""
    places = xp.arange(n, dtype=xp.float64)
    angles = -2 * xp.pi * places[:, None] * places / n
    return xp.complex(xp.cos(angles), xp.sin(angles))


fnet = FNet()
