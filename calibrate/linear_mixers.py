"""Kernels of linear mixers as they are measured: chunked recurrences, short and long convolutions.

What is timed is what a mixer's carry does, without projections and norms around it. Sizes: ``n`` tokens, heads of ``d``
channels for queries, keys and values alike; ``C`` channels of a convolution of ``K`` taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from calibrate.case import Case, Operand, Run, Shapes, Sizes
from costmodel.carries.monarch import long_convolution
from costmodel.carries.spectrum import Filter
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.delta import Delta
from costmodel.recurrences.gated import Gated
from costmodel.recurrences.pieces import slide

T = TypeVar("T")

#: Tokens of a chunk in flash-linear-attention.
CHUNK = 64

_HEADS = ("B", "H", "n", "d")


def _streams(*more: Any) -> Shapes:
    """q, k, v, and what each kind of recurrence has besides, given its sizes."""

    def shapes(s: Sizes) -> tuple[Any, ...]:
        return ((s["B"], s["H"], s["n"], s["d"]),) * 3 + tuple(make(s) for make in more)

    return shapes


def _by_head(s: Sizes) -> Operand:
    return Operand((s["H"],), "accumulate")


def _by_token(precision: str) -> Any:
    return lambda s: Operand((s["B"], s["H"], s["n"], 1), precision)


def _by_channel(s: Sizes) -> Operand:
    return Operand((s["B"], s["H"], s["n"], s["d"]), "accumulate")


def _retention(ops: Any, s: Sizes, q: Any, k: Any, v: Any, decay: Any) -> Any:
    return Gated(q, k, v, None, CHUNK, head_log_decay=decay).whole(ops)


def _gated(ops: Any, s: Sizes, q: Any, k: Any, v: Any, decay: Any) -> Any:
    return Gated(q, k, v, decay, CHUNK).whole(ops)


def _delta(ops: Any, s: Sizes, q: Any, k: Any, v: Any, beta: Any, decay: Any) -> Any:
    return Delta(q, k, v, beta, decay, CHUNK).whole(ops)


_CHUNKED: dict[str, tuple[Shapes, Run]] = {
    "chunk_retention": (_streams(_by_head), _retention),
    "chunk_gla": (_streams(_by_channel), _gated),
    "chunk_gated_delta": (_streams(_by_token("model"), _by_token("accumulate")), _delta),
}


@dataclass(frozen=True)
class Taps(Filter[T], Generic[T]):
    """Taps [C, n] that are at hand."""

    given: T

    def parameters(self) -> tuple[T, ...]:
        return (self.given,)

    def on(self, parameters: Sequence[T]) -> Self:
        return type(self)(*parameters)

    def taps(self, ops: Vocabulary[T], places: T) -> T:
        return self.given


def _long(kernel: str) -> Case:
    """A long convolution between two gates."""

    def inputs(s: Sizes) -> tuple[Any, ...]:
        return (*((s["B"], s["C"], s["n"], 1),) * 3, Operand((s["C"], s["n"]), "accumulate"))

    def run(ops: Any, s: Sizes, x: Any, before: Any, after: Any, taps: Any) -> Any:
        mixed = long_convolution(ops.mul(x, before), Taps(taps), kernel, ()).whole(ops)
        return ops.mul(mixed, after)

    return Case("fft", ("B", "C", "n"), inputs, run)


LINEAR_MIXERS: dict[str, Case] = {
    **{name: Case("scan", _HEADS, inputs, run) for name, (inputs, run) in _CHUNKED.items()},
    **{f"{name}_training": Case("scan", _HEADS, inputs, run, train=True) for name, (inputs, run) in _CHUNKED.items()},
    "short_convolution": Case(
        "convolution",
        ("B", "C", "n", "K"),
        lambda s: ((s["B"], s["C"], s["n"] + s["K"] - 1), (s["C"], s["K"])),
        lambda ops, s, x, taps: slide(ops, x, taps),
    ),
    "fft_convolution": _long("fft"),
    "monarch_convolution": _long("monarch"),
    "monarch_outer_convolution": _long("monarch-outer"),
}
