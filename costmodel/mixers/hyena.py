"""Hyena: gates around a long convolution, whose filter is a small network of the place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.monarch import long_convolution
from costmodel.carries.sliding import Sliding
from costmodel.carries.spectrum import Filter, counted
from costmodel.carry import Carry
from costmodel.dims import Dim, Shape, divide
from costmodel.mixer import Hyperparameter, Kept, Site, Sizes, Weights, Written
from costmodel.mixers.gated_convolution import GatedConvolution
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import remembered
from costmodel.written import banded

T = TypeVar("T")

READ = ("q", "k", "v")
SHARED = ("filter_in", "filter_bias", "filter_mid", "filter_mid_bias", "filter_frequency")

#: The lowest frequency of the features of a place; the others are whole numbers above it.
LOWEST = 1e-4

#: Layers of the network between its first and its last.
INNER = 2


@dataclass(frozen=True)
class ImplicitFilter(Filter[T]):
    """taps_l = exp(-|decay| l / L_max) network(features of l): sines as activations, the last layer without a bias.

    Attributes:
        shared: the weights ``SHARED`` of all layers but the last.
        last: [channels, f].
        decay: [channels].
        longest: L_max.
    """

    shared: tuple[T, ...]
    last: T
    decay: T
    longest: Dim

    def parameters(self) -> tuple[T, ...]:
        return self.last, self.decay

    def on(self, parameters: Sequence[T]) -> Self:
        return replace(self, last=parameters[0], decay=parameters[1])

    def taps(self, ops: Vocabulary[T], places: T) -> T:
        first, bias, middle, middle_bias, frequency = self.shared
        width, bands = ops.shape(bias)[0], divide(ops.shape(first)[0] - 1, 2)
        features = _features(ops, places, bands, self.longest)
        x = _sine(ops, ops.contract("mp,pf->mf", features, first), bias, frequency)
        for layer in range(INNER):
            w = ops.reshape(ops.slice(middle, 0, layer, 1), (width, width))
            own = ops.reshape(ops.slice(middle_bias, 0, layer, 1), (width,))
            x = _sine(ops, ops.contract("mf,fg->mg", x, w), own, frequency)
        made = ops.permute(ops.contract("mf,cf->mc", x, self.last), (1, 0))
        rate = ops.reshape(self.decay, (ops.shape(self.decay)[0], 1))

        def window(ops: Vocabulary[Any], made: Any, rate: Any, places: Any) -> Any:
            falling = ops.mul(ops.scale(places, -1 / self.longest), ops.map("abs", rate))
            return ops.mul(made, ops.map("exp", falling))

        result: T = ops.fused("exponential window", window, made, rate, places)
        return result


def _features(ops: Vocabulary[T], places: T, bands: Dim, longest: Dim) -> T:
    """l / L_max, cosines and sines [m, 1 + 2 bands] of places l [m]."""

    def body(ops: Vocabulary[Any], places: Any, frequencies: Any) -> Any:
        time = ops.scale(ops.reshape(places, (*ops.shape(places), 1)), 1 / longest)
        angle = ops.scale(ops.mul(time, frequencies), 2 * math.pi)
        return ops.concat([time, ops.map("cos", angle), ops.map("neg", ops.map("sin", angle))], 1)

    result: T = ops.fused("features of places", body, places, ops.shift(counted(ops, bands), LOWEST))
    return result


def _sine(ops: Vocabulary[T], x: T, bias: T, frequency: T) -> T:
    def body(ops: Vocabulary[Any], x: Any, bias: Any, frequency: Any) -> Any:
        return ops.map("sin", ops.mul(ops.add(x, bias), frequency))

    result: T = ops.fused("sine", body, x, bias, frequency)
    return result


class Hyena(GatedConvolution):
    """Of order 2: one long convolution between two gates. Biases of projections and short convolutions are left out.
    Time is l / L_max, the code's l / (L_max - 1), whose frequencies are evenly spaced up to n_f - 1.

    There is no decode state of constant size: a token is a sum over all gated values before it, which are kept, with
    taps made anew.
    """

    name: ClassVar[str] = "hyena"
    title: ClassVar[str] = "Hyena (implicit long convolution)"
    template: ClassVar[str] = (
        "P_ij = q_i taps_(i - j) for j <= i,  taps_l = exp(-|decay| l / L_max) network(l),  V = k v,  "
        "q, k, v = short convolutions of X W,  Y = (P V + q skip V) W_o"
    )
    source: ClassVar[str] = "Poli et al. 2023, arXiv 2302.10866; HazyResearch/safari src/models/sequence/hyena.py"
    fixed: ClassVar[tuple[str, ...]] = ("decay",)
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "channels": Hyperparameter("D_i", 768, "inner channels", cut=True),
        "taps": Hyperparameter("K", 3, "taps of the short convolutions"),
        "filter_width": Hyperparameter("f", 64, "width of the network that makes the filters"),
        "bands": Hyperparameter("n_f", 1, "frequencies among the features of a place"),
        "longest": Hyperparameter("L_max", 2**20, "the longest sequence, whose places are features from 0 to 1"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, E, f = m["D"], m["D_i"], m["f"]
        read = {f"w_{name}": (D, E, 1) for name in READ} | {f"taps_{name}": (E, 1, m["K"]) for name in READ}
        first = {"filter_in": (1 + 2 * m["n_f"], f), "filter_bias": (f,)}
        middle = {"filter_mid": (INNER, f, f), "filter_mid_bias": (INNER, f), "filter_frequency": (f,)}
        return {**read, **first, **middle, "filter_out": (E, f), "decay": (E,), "skip": (E,), "w_o": (E, 1, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return tuple(f"w_{name}" for name in READ)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        span = at.sizes["K"], True
        q, k, v = (Sliding(x, w[f"taps_{name}"], span).beside(ops, at.line) for name, x in zip(READ, read, strict=True))
        values = ops.mul(k, v)
        return long_convolution(values, self._filter(w, at), at.kernel, (q, values)), (values,)

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        q, k, v = (
            remembered(ops, x, w[f"taps_{name}"], before).value
            for name, x, before in zip(READ, read, at.cache[1:], strict=True)
        )
        new = ops.mul(k, v)
        values = ops.append(at.cache[0], new, 2)
        b, e, n, _ = ops.shape(values)
        taps = ops.flip(self._filter(w, at).taps(ops, counted(ops, n)), 1)
        mixed = ops.contract("bet,et->be", ops.reshape(values, (b, e, n)), taps)
        return Direct(ops.reshape(mixed, (b, e, 1, 1)), aside=(q, new))

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        before = Kept((m["D_i"], m["K"] - 1))
        return Kept((m["D_i"], tokens, 1), tokens=True), before, before, before

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        n, taps = x.shape[1], at.sizes["K"]
        q, k, v = (
            banded(xp, w[f"taps_{name}"][:, 0], n, taps - 1) @ xp.einsum("bld,dhe->bhle", x, w[f"w_{name}"])
            for name in READ
        )
        time = xp.arange(n, dtype=x.dtype) / at.sizes["L_max"]
        angles = 2 * xp.pi * time[:, None] * (xp.arange(at.sizes["n_f"], dtype=x.dtype) + LOWEST)
        y = xp.cat((time[:, None], xp.cos(angles), -xp.sin(angles)), -1)
        y = xp.sin((y @ w["filter_in"] + w["filter_bias"]) * w["filter_frequency"])
        for layer in range(INNER):
            y = xp.sin((y @ w["filter_mid"][layer] + w["filter_mid_bias"][layer]) * w["filter_frequency"])
        filters = (w["filter_out"] @ y.T) * xp.exp(-w["decay"].abs()[:, None] * time)
        return self.written_of(xp, filters, q, k * v, w)

    def _filter(self, w: Mapping[str, T], at: Site[T]) -> ImplicitFilter[T]:
        shared = tuple(w[name] for name in SHARED)
        return ImplicitFilter(shared, w["filter_out"], w["decay"], at.sizes["L_max"])


hyena = Hyena()
