"""Reshapes, slices and copies: what moves no number, or only moves numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, Shape, product
from costmodel.ops.mesh import Axis
from costmodel.ops.pointwise import elements_match
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec, View
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


def replace(shape: Shape, axis: int, size: Dim) -> Shape:
    """The shape with one axis resized."""
    return (*shape[:axis], size, *shape[axis + 1 :])


@dataclass(frozen=True)
class Reshape(View):
    """The same elements in another shape."""

    shape: Shape

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        if not elements_match(inputs[0].shape, self.shape):
            raise ValueError(f"shape {inputs[0].shape} cannot be seen as {self.shape}")
        return (Spec(self.shape, inputs[0].width, view_of=0),)

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return (ops.reshape(gradients[0], ops.shape(inputs[0])),)


@dataclass(frozen=True)
class Permute(View):
    """The axes in another order; no memory moves, kernels read with strides."""

    axes: tuple[int, ...]

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(tuple(inputs[0].shape[axis] for axis in self.axes), inputs[0].width, view_of=0),)

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return (ops.permute(gradients[0], tuple(self.axes.index(axis) for axis in range(len(self.axes)))),)


@dataclass(frozen=True)
class Flip(Primitive):
    """An axis in reverse order, in new memory."""

    axis: int

    family = "copy"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(inputs[0].shape, inputs[0].width),)

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return ops.apply(Flip(self.axis), gradients[0])


@dataclass(frozen=True)
class Expand(View):
    """Axes of size 1, and missing leading axes, seen as if repeated."""

    shape: Shape

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(self.shape, inputs[0].width, view_of=0),)

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return (ops.sum_to(gradients[0], ops.shape(inputs[0])),)


@dataclass(frozen=True)
class Slice(View):
    """``size`` entries of an axis, from ``start`` on, each ``step`` after the one before."""

    axis: int
    start: Dim
    size: Dim
    step: Dim = 1

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(replace(inputs[0].shape, self.axis, self.size), inputs[0].width, view_of=0),)

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return ops.apply(Pad(self.axis, self.start, ops.shape(inputs[0])[self.axis], self.step), gradients[0])


@dataclass(frozen=True)
class Pad(Primitive):
    """A slice put back where it came from, in zeros."""

    axis: int
    start: Dim
    size: Dim
    step: Dim = 1

    family = "copy"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(replace(inputs[0].shape, self.axis, self.size), inputs[0].width),)

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return (ops.slice(gradients[0], self.axis, self.start, ops.shape(inputs[0])[self.axis], self.step),)


@dataclass(frozen=True)
class Concat(Primitive):
    """Tensors laid end to end along an axis, in new memory."""

    axis: int

    family = "copy"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        size = sum(t.shape[self.axis] for t in inputs)
        return (Spec(replace(inputs[0].shape, self.axis, size), inputs[0].width),)

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": len(inputs) * product(inputs[0].shape[: self.axis])}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        start: Dim = 0
        parts = []
        for x in inputs:
            size = ops.shape(x)[self.axis]
            parts.append(ops.slice(gradients[0], self.axis, start, size))
            start = start + size
        return parts


@dataclass(frozen=True)
class Fill(Primitive):
    """New memory filled with one number."""

    shape: Shape
    to: str
    width: Dim
    value: float = 0.0

    family = "copy"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(self.shape, self.width),)


@dataclass(frozen=True)
class AddInto(Primitive):
    """``accumulator[start:start+size] += block`` along an axis, in place.

    Inputs: the accumulator, and a block whose extent along the axis is the slice's.
    """

    axis: int
    start: Dim

    family = "elementwise"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(inputs[0].shape, inputs[0].width, view_of=0),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": inputs[1].elements}

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        touched = inputs[1].elements * inputs[0].width
        return inputs[1].bytes + touched, touched


@dataclass(frozen=True)
class Repeat(Primitive):
    """Each entry of an axis written ``times`` times in a row (repeated key-value heads)."""

    axis: int
    times: Dim

    family = "copy"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        shape = inputs[0].shape
        return (Spec(replace(shape, self.axis, shape[self.axis] * self.times), inputs[0].width),)

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        shape = ops.shape(inputs[0])
        grouped = (*shape[: self.axis + 1], self.times, *shape[self.axis + 1 :])
        summed = ops.sum(ops.reshape(gradients[0], grouped), (self.axis + 1,))
        return (ops.reshape(summed, shape),)


@dataclass(frozen=True)
class Write(Primitive):
    """A slice of an axis written over, in place. Inputs: the whole, and its new entries along the axis."""

    axis: int
    start: Dim

    family = "copy"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(inputs[0].shape, inputs[0].width, view_of=0),)

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        return inputs[1].bytes, inputs[1].elements * inputs[0].width


@dataclass(frozen=True)
class Append(Primitive):
    """New entries written into the last places of a cache, in place; where it is spread, only on its last rank.

    Entries of fewer sequences than the cache has are those of this rank's share of them along ``spread``, and are
    written there.

    Inputs: the cache, and the new entries along the axis.
    """

    axis: int
    spread: Axis | None

    family = "copy"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(inputs[0].shape, inputs[0].width, view_of=0),)

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        return inputs[1].bytes, inputs[1].bytes
