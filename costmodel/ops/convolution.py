"""Depthwise convolution along the sequence, of few enough taps to be done by sliding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, same
from costmodel.documents import Documents, Packed
from costmodel.ops.layout import Flip, Pad
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


def tap_by_tap(taps: Dim, x: Tensor, passes: int) -> dict[str, tuple[Dim, Dim]]:
    """Bytes that a kernel which goes over its tensors once for each tap moves between its sums, with those of one time.

    Args:
        x: as large as what it goes over.
        passes: how many such are read or written each time.
    """
    return {"between": (passes * taps * x.bytes, passes * x.bytes)}


@dataclass(frozen=True)
class Under:
    """Packed documents under the taps of a convolution, of which each output has those of its own token alone.

    Attributes:
        output: which token of the sequence the first output is of.
        under: which is under its first tap.
    """

    documents: Documents
    output: Dim
    under: Dim


def under(packed: Packed | None, left: Dim) -> Under | None:
    """Of outputs of these tokens, whose first tap is so many tokens before them."""
    return None if packed is None else Under(packed.documents, packed.start, packed.start - left)


@dataclass(frozen=True)
class Depthwise(Primitive):
    """y[b, c, i] = sum over j < K of x[b, c, i + j a] taps[c, j]: x [B, C, n + (K - 1) a], taps [C, K] -> [B, C, n].

    2 K elementwise FLOP an output: one channel at a time, it is no work for matrix units. With packed documents 3 K,
    as each place is looked at to see whose it is (as by the kernel of Dao-AILab/causal-conv1d with ``seq_idx``).

    Attributes:
        apart: a, the distance of the places under neighbouring taps (dilation).
    """

    apart: Dim = 1
    packed: Under | None = None

    family = "convolution"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x, taps = inputs
        if not same(x.shape[1], taps.shape[0]):
            raise ValueError(f"taps {taps.shape} are not those of the channels of {x.shape}")
        return (Spec((*x.shape[:2], x.shape[2] - self.apart * (taps.shape[1] - 1)), x.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": _of_a_tap(self.packed) * inputs[1].shape[1] * outputs[0].elements}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": inputs[1].shape[1]}

    def missed(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, tuple[Dim, Dim]]:
        return tap_by_tap(inputs[1].shape[1], outputs[0], 3)

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        x, taps = inputs

        def of_input() -> Any:
            k, n = ops.shape(taps)[1], ops.shape(gradients[0])[2]
            around = self.apart * (k - 1)
            padded = ops.apply(Pad(2, around, n + 2 * around), gradients[0])[0]
            packed = self.packed
            if packed is not None:  # the first output is of what is under its first tap, which has none before it
                packed = replace(packed, output=packed.under, under=packed.output - around)
            return ops.apply(Depthwise(self.apart, packed), padded, ops.apply(Flip(1), taps)[0])[0]

        own = TapsGradient(ops.shape(taps)[1], self.apart, self.packed)
        return of_input, lambda: ops.apply(own, x, gradients[0])[0]


@dataclass(frozen=True)
class TapsGradient(Primitive):
    """The gradient [C, K] of a depthwise convolution's taps: x [B, C, n + (K - 1) a], output's gradient [B, C, n]."""

    taps: Dim
    apart: Dim = 1
    packed: Under | None = None

    family = "convolution"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec((inputs[0].shape[1], self.taps), inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": _of_a_tap(self.packed) * self.taps * inputs[1].elements}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": self.taps}

    def missed(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, tuple[Dim, Dim]]:
        return tap_by_tap(self.taps, inputs[1], 4)


def _of_a_tap(packed: Under | None) -> int:
    """FLOP of one output's tap."""
    return 2 if packed is None else 3
