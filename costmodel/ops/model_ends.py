"""What a model has besides layers: embedding lookup, and the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.dims import Dim, Shape
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor


@dataclass(frozen=True)
class Lookup(Primitive):
    """Rows of an embedding matrix [V, D] for tokens of shape [B, n]: [B, n, D]."""

    tokens: Shape

    family = "gather"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec((*self.tokens, inputs[0].shape[1]), inputs[0].width),)

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        return outputs[0].bytes, outputs[0].bytes


@dataclass(frozen=True)
class AdamStep(Primitive):
    """One step of Adam in mixed precision on n parameters: reads gradients [n] and the state, writes both back.

    The state is a float32 copy of the weight and two moments, 12 bytes a parameter (Rajbhandari et al. 2020, arXiv
    1910.02054, section 3.1). The two moments cost 3 and 4 FLOP, bias correction and update 6 and a square root.
    """

    family = "elementwise"
    STATE_BYTES = 12

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(inputs[0].shape, inputs[0].width, view_of=0),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": 13 * inputs[0].elements, "special": inputs[0].elements}

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        state = self.STATE_BYTES * inputs[0].elements
        return inputs[0].bytes + state, inputs[0].bytes + state
