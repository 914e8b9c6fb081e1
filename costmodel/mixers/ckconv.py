"""CKConv: a long convolution from every channel to every channel, with filters that are a network of the place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.spectrum import Filter, LongConvolution, Spectrum, counted
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape, divide
from costmodel.mixer import INPUT, Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import by_channel, by_token
from costmodel.written import toeplitz

T = TypeVar("T")

NETWORK = ("filter_in", "filter_bias", "filter_mid", "filter_mid_bias")

#: What arguments of sines are multiplied by: that of Sitzmann et al. 2020, arXiv 2006.09661; tuned in CKConv's code.
FREQUENCY = 30.0


@dataclass(frozen=True)
class PairFilter(Filter[T]):
    """taps_l = W sin(w (M sin(w (i (2 l / L_max - 1) + b)) + c)): [D D, m], for each output those of all inputs.

    Attributes:
        network: the weights ``NETWORK``: i [1, f], b [f], M [f, f], c [f].
        last: W [D, D, f]; or of some of the outputs.
        longest: L_max.
    """

    network: tuple[T, ...]
    last: T
    longest: Dim

    def parameters(self) -> tuple[T, ...]:
        return (self.last,)

    def on(self, parameters: Sequence[T]) -> Self:
        return replace(self, last=parameters[0])

    def taps(self, ops: Vocabulary[T], places: T) -> T:
        first, bias, middle, middle_bias = self.network
        out, into, width = ops.shape(self.last)
        place = ops.shift(ops.scale(ops.reshape(places, (*ops.shape(places), 1)), 2 / self.longest), -1)
        x = _sine(ops, ops.contract("mp,pf->mf", place, first), bias)
        x = _sine(ops, ops.contract("mf,fg->mg", x, middle), middle_bias)
        return ops.contract("mf,cf->cm", x, ops.reshape(self.last, (out * into, width)))


def _sine(ops: Vocabulary[T], x: T, bias: T) -> T:
    def body(ops: Vocabulary[Any], x: Any, bias: Any) -> Any:
        return ops.map("sin", ops.scale(ops.add(x, bias), FREQUENCY))

    result: T = ops.fused("sine", body, x, bias)
    return result


@dataclass(frozen=True)
class PairsConvolution(LongConvolution[T]):
    """y_i = sum over j <= i of the matrix taps_(i - j) times x_j: a product of matrices in each bin of the spectrum.

    x [B, 1, n, D] is one head, which ranks that cut the outputs share.
    """

    def channels(self, ops: Vocabulary[T]) -> T:
        b, _, n, width = ops.shape(self.x)
        return by_channel(ops, ops.reshape(self.x, (b, n, width)))

    def product(self, ops: Vocabulary[T], seen: T, heard: T) -> T:
        b, channels, bins, _ = ops.shape(seen)
        outputs = divide(ops.shape(heard)[0], channels)
        matrices = ops.reshape(heard, (outputs, channels, bins, 2))

        def body(ops: Vocabulary[Any], x: Any, w: Any) -> Any:
            parts = [[ops.reshape(part, ops.shape(part)[:-1]) for part in ops.halves(z, 3)] for z in (x, w)]
            (real, imaginary), (w_real, w_imaginary) = parts

            def times(x: Any, w: Any) -> Any:
                return ops.contract("bif,oif->bof", x, w)

            both = (
                ops.map("sub", times(real, w_real), times(imaginary, w_imaginary)),
                ops.add(times(real, w_imaginary), times(imaginary, w_real)),
            )
            return ops.concat([ops.reshape(part, (b, outputs, bins, 1)) for part in both], 3)

        result: T = ops.fused("complex matrix products", body, seen, matrices)
        return result


class CKConv(Mixer):
    """One convolution of a CKCNN's block. Biases of the convolution and of the network's last layer are left out.

    Norms, and the other half of a block, are left to what is around it. As in Hyena, a decoded token is a sum over all
    inputs before it, with taps made anew. Ranks can cut the outputs: each then makes the filters of its own with its
    rows of the network's last layer, and needs all inputs.
    """

    name: ClassVar[str] = "ckconv"
    title: ClassVar[str] = "CKConv (continuous kernels between all channels)"
    template: ClassVar[str] = (
        "P_ij = taps_(i - j) for j <= i, a D x D matrix: network(2 (i - j) / L_max - 1),  V = X,  Y = P V"
    )
    source: ClassVar[str] = "Romero et al. 2021, arXiv 2102.02611; dwromero/ckconv ckconv/nn/ckconv.py"
    structure: ClassVar[Structure] = Structure.TOEPLITZ
    carry: ClassVar[type[Carry[Any]]] = Spectrum
    kernels: ClassVar[tuple[str, ...]] = ("fft",)
    causality: ClassVar[str] = "causal"
    indivisible: ClassVar[str] = "every channel is a sum over all channels"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "filter_width": Hyperparameter("f", 32, "width of the network that makes the filters"),
        "longest": Hyperparameter("L_max", 2**20, "the longest sequence, whose places run from -1 to 1"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, f = m["D"], m["f"]
        network = dict(zip(NETWORK, ((1, f), (f,), (f, f), (f,)), strict=True))
        return {**network, "filter_out": (D, D, f)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (INPUT,)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        b, n, width = ops.shape(read[0])
        x = ops.reshape(read[0], (b, 1, n, width))
        return PairsConvolution(x, self._filter(w, at)), (by_channel(ops, read[0]),)

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        values = ops.append(at.cache[0], by_channel(ops, read[0]), 2)
        b, d, n, _ = ops.shape(values)
        taps = ops.flip(self._filter(w, at).taps(ops, counted(ops, n)), 1)
        mixed = ops.contract("bit,oit->bo", ops.reshape(values, (b, d, n)), ops.reshape(taps, (d, d, n)))
        return Direct(ops.reshape(mixed, (b, d, 1, 1)))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return by_token(ops, mixed)

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((m["D"], tokens, 1), tokens=True),)

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["D"], m["D"]

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return 30

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        n, width = x.shape[1:]
        place = 2 * xp.arange(n, dtype=x.dtype)[:, None] / at.sizes["L_max"] - 1
        y = xp.sin(FREQUENCY * (place @ w["filter_in"] + w["filter_bias"]))
        y = xp.sin(FREQUENCY * (y @ w["filter_mid"] + w["filter_mid_bias"]))
        taps = w["filter_out"].reshape(width * width, -1) @ y.T
        matrices = toeplitz(xp, taps).reshape(width, width, n, n)
        return Written(None, None, xp.einsum("ocij,bjc->bio", matrices, x))

    def _filter(self, w: Mapping[str, T], at: Site[T]) -> PairFilter[T]:
        return PairFilter(tuple(w[name] for name in NETWORK), w["filter_out"], at.sizes["L_max"])


ckconv = CKConv()
