"""The inverse of a unit lower triangular matrix, which the delta rule needs in each chunk."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, divide, product, same
from costmodel.masks import Mask
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


@dataclass(frozen=True)
class TriangularInverse(Primitive):
    """T = (I + A)^-1 [..., C, C], of the entries of A below the diagonal; the others are not read.

    Forward substitution (Golub & Van Loan, Matrix Computations, section 3.1; in the delta rule, Yang et al. 2024,
    arXiv 2406.06484, section 3.2): entry (i, j) takes i - j - 1 multiply-adds, C (C - 1) (C - 2) / 3 FLOP in all. Row
    follows row, each a vector times a matrix, so that they are elementwise FLOPs and not for matrix units.
    """

    family = "recurrence"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        shape = inputs[0].shape
        if not same(shape[-2], shape[-1]):
            raise ValueError(f"only square matrices have inverses, not {shape}")
        return (Spec(shape, inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        *outer, _, c = inputs[0].shape
        return {"elementwise": product(outer) * divide(c * (c - 1) * (c - 2), 3)}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": product(inputs[0].shape[:-1])}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        # dT = -T dA T, so that the gradient of A is -T^t g T^t where A is read.
        inverse, outer = outputs[0], string.ascii_lowercase[: len(ops.shape(outputs[0])) - 2]
        left = ops.contract(f"{outer}xy,{outer}xz->{outer}yz", inverse, gradients[0])
        both = ops.contract(f"{outer}yz,{outer}xz->{outer}yx", left, inverse)
        return (ops.masked(ops.map("neg", both), Mask(causal=True), strict=True),)
