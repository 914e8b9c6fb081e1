"""Every r-th row, and from head to head other ones: what dilated attention reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, divide, same
from costmodel.ops.layout import replace
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.ops.selection import INDEX_WIDTH
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


@dataclass(frozen=True)
class Numbers(Primitive):
    """``start``, ``start`` + 1 and so on: [size], without gradient."""

    start: Dim
    size: Dim

    family = "copy"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec((self.size,), INDEX_WIDTH, differentiable=False),)


def _check(x: Tensor, heads: Tensor) -> None:
    if len(heads.shape) != 1 or not same(x.shape[1], heads.shape[0]):
        raise ValueError(f"numbers {heads.shape} are not one for each head of {x.shape}")


@dataclass(frozen=True)
class Thin(Primitive):
    """Every ``step``-th row: x [B, H, n, ...], numbers of heads [H] -> [B, H, n / step, ...]; step divides n.

    Head number h takes the rows i with i = h mod step. Only what is taken is read.
    """

    step: Dim

    family = "gather"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x, heads = inputs
        _check(x, heads)
        return (Spec(replace(x.shape, 2, divide(x.shape[2], self.step)), x.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"gather": outputs[0].elements}

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        return outputs[0].bytes + inputs[1].bytes, outputs[0].bytes

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return lambda: ops.spread(gradients[0], inputs[1], self.step), None


@dataclass(frozen=True)
class Spread(Primitive):
    """Rows put back where ``Thin`` takes them from: x [B, H, m, ...], numbers of heads [H] -> [B, H, m step, ...].

    Attributes:
        fill: of the other rows.
    """

    step: Dim
    fill: float = 0.0

    family = "gather"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x, heads = inputs
        _check(x, heads)
        return (Spec(replace(x.shape, 2, x.shape[2] * self.step), x.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"gather": inputs[0].elements}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return lambda: ops.thin(gradients[0], inputs[1], self.step), None
