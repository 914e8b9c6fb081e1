"""Choosing, ordering, gathering and scattering by indices.

Indices are 8 bytes wide, as torch's, and carry no gradient. FLOP class ``sort`` counts comparisons, ``gather`` elements
that are moved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, divide, floor_div, log2, minimum, product, same
from costmodel.ops.layout import replace
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary

#: Bytes of one index.
INDEX_WIDTH = 8


@dataclass(frozen=True)
class TopK(Primitive):
    """The k largest of the last axis, the largest first, and where they are: [..., n] -> [..., k] twice.

    n (1 + log2 k) comparisons: each entry with the smallest of a heap of k, and down that heap (Knuth, The Art of
    Computer Programming, vol. 3, section 5.2.3). The gradient of a value goes to the entry that it is.
    """

    k: Dim

    family = "sort"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x = inputs[0]
        shape = replace(x.shape, len(x.shape) - 1, self.k)
        return Spec(shape, x.width), Spec(shape, INDEX_WIDTH, differentiable=False)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"sort": inputs[0].elements * (1 + log2(self.k))}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        """Down the heap goes each entry that is among the k largest of those up to it: k (1 + ln(n / k)) of a row in
        random order (Knuth, vol. 1, section 1.2.10, for k = 1). Rows shorter than 64 k are cut in two around the k-th
        largest instead (aten/src/ATen/native/TopKImpl.h): places and values are read twice, about.
        """
        *outer, n = inputs[0].shape
        k = self.k
        heap = minimum(floor_div(n, 64 * k), 1)
        entering = k * (1 + math.log(2) * (log2(n) - log2(k)))
        pairs = inputs[0].elements * (inputs[0].width + INDEX_WIDTH)
        return {"line": heap * product(outer) * entering * (1 + log2(k)), "again": (1 - heap) * 2 * pairs}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return (_put_back(ops, inputs[0], outputs[1], gradients[0]),)


@dataclass(frozen=True)
class Sort(Primitive):
    """The last axis in order, equal entries as they were, and where each comes from: [..., n] -> [..., n] twice.

    n log2 n comparisons, as of a merge sort.
    """

    descending: bool = False

    family = "sort"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x = inputs[0]
        return Spec(x.shape, x.width), Spec(x.shape, INDEX_WIDTH, differentiable=False)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"sort": inputs[0].elements * log2(inputs[0].shape[-1])}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": product(inputs[0].shape[:-1])}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return (_put_back(ops, inputs[0], outputs[1], gradients[0]),)


def _put_back(ops: Vocabulary[Any], x: Any, indices: Any, gradient: Any) -> Any:
    axis = len(ops.shape(x)) - 1
    return ops.scatter_add(gradient, indices, axis, ops.shape(x)[axis])


def _check(x: Tensor, indices: Tensor, axis: int) -> None:
    shared = zip(x.shape[:axis], indices.shape[:axis], strict=False)
    if len(indices.shape) < axis or not all(same(m, n) for m, n in shared):
        raise ValueError(f"indices {indices.shape} do not begin with the {axis} leading axes of {x.shape}")


@dataclass(frozen=True)
class Gather(Primitive):
    """Entries of an axis by indices: x [*outer, n, *inner], indices [*outer, *m] -> [*outer, *m, *inner].

    The axes before this one are the same in both. Only what is taken is read.
    """

    axis: int

    family = "gather"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x, indices = inputs
        _check(x, indices, self.axis)
        return (Spec((*indices.shape, *x.shape[self.axis + 1 :]), x.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"gather": outputs[0].elements}

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        return outputs[0].bytes + inputs[1].bytes, outputs[0].bytes

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": inputs[1].elements}

    def missed(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, tuple[Dim, Dim]]:
        return {"far": (inputs[1].elements, divide(inputs[0].bytes, product(inputs[0].shape[: self.axis])))}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        size = ops.shape(inputs[0])[self.axis]
        return lambda: ops.scatter_add(gradients[0], inputs[1], self.axis, size), None


@dataclass(frozen=True)
class ScatterAdd(Primitive):
    """Entries added up at indices: x [*outer, *m, *inner], indices [*outer, *m] -> [*outer, n, *inner].

    One addition for each element; zeros are written first, and then the places that are added to are read and written.
    """

    axis: int
    size: Dim

    family = "gather"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x, indices = inputs
        _check(x, indices, len(indices.shape))
        return (Spec((*x.shape[: self.axis], self.size, *x.shape[len(indices.shape) :]), x.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"gather": inputs[0].elements, "elementwise": inputs[0].elements}

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        x, indices = inputs
        return 2 * x.bytes + indices.bytes, outputs[0].bytes + x.bytes

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": inputs[1].elements}

    def missed(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, tuple[Dim, Dim]]:
        return {"far": (inputs[1].elements, divide(outputs[0].bytes, product(inputs[0].shape[: self.axis])))}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return lambda: ops.gather(gradients[0], inputs[1], self.axis), None
