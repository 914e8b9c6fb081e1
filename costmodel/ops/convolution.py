"""Depthwise convolution along the sequence, of few enough taps to be done by sliding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, same
from costmodel.ops.layout import Flip, Pad
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


def products(taps: Dim, x: Tensor) -> dict[str, tuple[Dim, Dim]]:
    """What a kernel that sums products of a tensor with every tap writes and reads before it sums them."""
    between = 2 * taps * x.bytes
    return {"between": (between, between)}


@dataclass(frozen=True)
class Depthwise(Primitive):
    """y[b, c, i] = sum over j < K of x[b, c, i + j a] taps[c, j]: x [B, C, n + (K - 1) a], taps [C, K] -> [B, C, n].

    2 K elementwise FLOP an output: one channel at a time, it is no work for matrix units.

    Attributes:
        apart: a, the distance of the places under neighbouring taps (dilation).
    """

    apart: Dim = 1

    family = "convolution"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x, taps = inputs
        if not same(x.shape[1], taps.shape[0]):
            raise ValueError(f"taps {taps.shape} are not those of the channels of {x.shape}")
        return (Spec((*x.shape[:2], x.shape[2] - self.apart * (taps.shape[1] - 1)), x.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": 2 * inputs[1].shape[1] * outputs[0].elements}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": outputs[0].elements}

    def missed(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, tuple[Dim, Dim]]:
        return products(inputs[1].shape[1], outputs[0])

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        x, taps = inputs

        def of_input() -> Any:
            k, n = ops.shape(taps)[1], ops.shape(gradients[0])[2]
            around = self.apart * (k - 1)
            padded = ops.apply(Pad(2, around, n + 2 * around), gradients[0])[0]
            return ops.apply(self, padded, ops.apply(Flip(1), taps)[0])[0]

        return of_input, lambda: ops.apply(TapsGradient(ops.shape(taps)[1], self.apart), x, gradients[0])[0]


@dataclass(frozen=True)
class TapsGradient(Primitive):
    """The gradient [C, K] of a depthwise convolution's taps: x [B, C, n + (K - 1) a], output's gradient [B, C, n]."""

    taps: Dim
    apart: Dim = 1

    family = "convolution"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec((inputs[0].shape[1], self.taps), inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": 2 * self.taps * inputs[1].elements}

    def missed(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, tuple[Dim, Dim]]:
        return products(self.taps, inputs[1])
