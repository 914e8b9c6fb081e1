"""Convolution along the sequence whose taps are other ones at every position (Wu et al. 2019, arXiv 1901.10430).

Here x [B, H, n + K - 1, e] are rows with those of the neighbourhood, and taps [B, H, n, K] are shared by the e channels
of a head. 2 K elementwise FLOP an output, as for taps that stay the same: no work for matrix units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, same
from costmodel.ops.convolution import tap_by_tap
from costmodel.ops.layout import replace
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


@dataclass(frozen=True)
class DynamicDepthwise(Primitive):
    """y[b, h, i, c] = sum over j < K of taps[b, h, i, j] x[b, h, i + j, c]: [B, H, n, e]."""

    family = "convolution"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x, taps = inputs
        n, k = taps.shape[2:]
        if not all(same(a, b) for a, b in zip(x.shape[:3], (*taps.shape[:2], n + k - 1), strict=True)):
            raise ValueError(f"rows {x.shape} are not those that taps {taps.shape} slide over")
        return (Spec(replace(x.shape, 2, n), x.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": 2 * inputs[1].shape[3] * outputs[0].elements}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": inputs[1].elements}

    def missed(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, tuple[Dim, Dim]]:
        return tap_by_tap(inputs[1].shape[3], outputs[0], 3)

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        x, taps = inputs
        return (
            lambda: ops.apply(DynamicRowsGradient(), gradients[0], taps)[0],
            lambda: ops.apply(DynamicTapsGradient(ops.shape(taps)[3]), x, gradients[0])[0],
        )


@dataclass(frozen=True)
class DynamicRowsGradient(Primitive):
    """The gradient [B, H, n + K - 1, e] of the rows: the output's gradient [B, H, n, e] spread by the taps."""

    family = "convolution"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        gradient, taps = inputs
        return (Spec(replace(gradient.shape, 2, gradient.shape[2] + taps.shape[3] - 1), gradient.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": 2 * inputs[1].shape[3] * inputs[0].elements}


@dataclass(frozen=True)
class DynamicTapsGradient(Primitive):
    """The gradient [B, H, n, K] of the taps: inner products of rows x and the output's gradient [B, H, n, e]."""

    taps: Dim

    family = "convolution"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x, gradient = inputs
        return (Spec((*gradient.shape[:3], self.taps), x.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": 2 * self.taps * inputs[1].elements}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": outputs[0].elements}

    def missed(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, tuple[Dim, Dim]]:
        return tap_by_tap(self.taps, inputs[1], 4)
