"""Tokens sent to experts and back. Routing is taken to be balanced: every expert gets as many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, Shape
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


@dataclass(frozen=True)
class Dispatch(Primitive):
    """Tokens [B, n, D] copied to the ``active`` experts with the best scores [B, n, E]: [E, B n active / E, D].

    Selecting reads every score once.
    """

    active: Dim

    family = "gather"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x, scores = inputs
        b, n, width = x.shape
        experts = scores.shape[2]
        return (Spec((experts, b * n * self.active / experts, width), x.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"sort": inputs[1].elements}

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        return outputs[0].bytes + inputs[1].bytes, outputs[0].bytes

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return ops.apply(Collect(ops.shape(inputs[0])), gradients[0])[0], None


@dataclass(frozen=True)
class Collect(Primitive):
    """What experts give [E, m, D], summed where the tokens came from."""

    shape: Shape

    family = "gather"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(self.shape, inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": inputs[0].elements}


@dataclass(frozen=True)
class Combine(Primitive):
    """What experts give [E, m, D], weighted by their scores [B, n, E] and summed for each token [B, n, D]."""

    active: Dim

    family = "gather"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        y, scores = inputs
        return (Spec((*scores.shape[:2], y.shape[2]), y.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": 2 * inputs[0].elements}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        y, scores = inputs
        return (
            lambda: ops.apply(Dispatch(self.active), gradients[0], scores)[0],
            lambda: ops.apply(ScoreGradient(ops.shape(scores)), y, gradients[0])[0],
        )


@dataclass(frozen=True)
class ScoreGradient(Primitive):
    """Inner products of what experts gave with the output's gradient: one for each token and active expert."""

    shape: Shape

    family = "gather"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(self.shape, inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": inputs[0].elements, "reduction": inputs[0].elements}
