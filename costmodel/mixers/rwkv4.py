"""RWKV-4: for each channel a weighted mean of values, with weights that decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.state import State
from costmodel.carry import Carry, Structure
from costmodel.composite import token_shift
from costmodel.dims import Dim, Shape
from costmodel.mixer import INPUT, Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import between
from costmodel.recurrences.wkv import LOWEST, Wkv, wkv_output, wkv_step

T = TypeVar("T")

#: What is made of an input that is mixed with its predecessor by weights of its own.
MIXED = "r", "k", "v"


class Rwkv4(Mixer):
    """Token shift, the recurrence of ``costmodel.recurrences.wkv``, and a sigmoid gate."""

    name: ClassVar[str] = "rwkv4"
    title: ClassVar[str] = "RWKV-4"
    template: ClassVar[str] = (
        "P_ij = exp(k_j - (i - 1 - j) exp(w)) / rowsum for j < i, P_ii = exp(k_i + u) / rowsum, for each channel,  "
        "Y = sigmoid(R) P V"
    )
    source: ClassVar[str] = "Peng et al. 2023, arXiv 2305.13048; transformers models/rwkv; BlinkDL/RWKV-LM RWKV-v4"
    structure: ClassVar[Structure] = Structure.SEMISEPARABLE
    carry: ClassVar[type[Carry[Any]]] = State
    kernels: ClassVar[tuple[str, ...]] = ("recurrent",)
    causality: ClassVar[str] = "causal"
    documents: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "channels": Hyperparameter("D_i", 4096, "inner channels", cut=True),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, E = m["D"], m["D_i"]
        shift: dict[str, Shape] = {f"mix_{name}": (D,) for name in MIXED}
        read = {f"w_{name}": (D, E, 1) for name in MIXED}
        return {**shift, **read, "decay": (E, 1), "first": (E, 1), "w_o": (E, 1, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (INPUT,)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        before = token_shift(ops, read[0], 1, at.line, at.packed(ops.shape(read[0])[1]))
        r, k, v = self._read(ops, read[0], before, w)
        return Wkv(k, v, self._rate(ops, w), w["first"], aside=(r,)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        x, (*caches, last) = read[0], at.cache
        r, *token = self._read(ops, x, ops.reshape(last, ops.shape(x)), w)
        ops.append(last, ops.reshape(x, ops.shape(last)), 0)
        k, v = (ops.reshape(y, (*ops.shape(y)[:2], 1)) for y in token)

        def body(ops: Vocabulary[Any], k: Any, v: Any, rate: Any, first: Any, *state: Any) -> Any:
            return wkv_output(ops, state, (k, v), first), *wkv_step(ops, state, (k, v), rate)

        mixed, *after = ops.fused("wkv", body, k, v, self._rate(ops, w), w["first"], *caches)
        for cache, new in zip(caches, after, strict=True):
            ops.append(cache, new, 0)
        return Direct(ops.reshape(mixed, ops.shape(r)), aside=(r,))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        def body(ops: Vocabulary[Any], mixed: Any, r: Any) -> Any:
            return ops.mul(mixed, ops.map("sigmoid", r))

        return ops.contract("bhle,hed->bld", ops.fused("gate", body, mixed, at.aside[0]), w["w_o"])

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        of_channels = (Kept((m["D_i"], 1), "accumulate", start=start) for start in (0.0, 0.0, LOWEST))
        return (*of_channels, Kept((m["D"],)))

    def overlap(self, m: Sizes) -> Dim:
        return 1

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return sizes["channels"]

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["D_i"], m["D_i"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        n, before = x.shape[1], xp.cat((xp.zeros_like(x[:, :1]), x[:, :-1]), 1)
        r, k, v = (xp.einsum("bld,dhe->bhle", x + (before - x) * w[f"mix_{name}"], w[f"w_{name}"]) for name in MIXED)
        apart = xp.arange(n)[:, None] - xp.arange(n)[None, :]
        logarithm = k[..., 0][:, :, None, :] - (apart - 1) * xp.exp(w["decay"])[..., None]
        own = (k + w["first"][:, None]).expand(-1, -1, -1, n)
        scores = xp.where(apart == 0, own, xp.where(apart > 0, logarithm, -xp.inf))
        matrix = xp.exp(scores - scores.detach().amax(-1, True))
        matrix = matrix / matrix.sum(-1, True)
        return Written(matrix, v, xp.einsum("bhle,hed->bld", matrix @ v / (1 + xp.exp(-r)), w["w_o"]))

    def _read(self, ops: Vocabulary[T], x: T, before: T, w: Weights) -> tuple[T, ...]:
        """r, k and v [B, E, n, 1]."""
        mixed = between(ops, x, before, *(w[f"mix_{name}"] for name in MIXED))
        return tuple(ops.contract("bld,dhe->bhle", y, w[f"w_{name}"]) for y, name in zip(mixed, MIXED, strict=True))

    def _rate(self, ops: Vocabulary[T], w: Weights) -> T:
        return ops.map("exp", ops.cast(w["decay"], "accumulate"))


rwkv4 = Rwkv4()
