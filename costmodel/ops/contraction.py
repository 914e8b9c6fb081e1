"""Contraction of two tensors: every matrix product of the project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, floor_div, minimum, product, same
from costmodel.masks import Mask, Tile
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary

#: Bytes of a page of a CPU's memory.
PAGE = 4096


@dataclass(frozen=True)
class Contract(Primitive):
    """``einsum`` of two operands, such as ``"bld,df->blf"``; 2 FLOP for each combination of all its indices.

    The result has the precision of the first operand, as everywhere in the vocabulary; the kernel converts the second.

    Attributes:
        equation: each index is in at least two of the two operands and the result, once in each.
        mask: when the indices of queries and keys are masked, only these pairs are useful.
        pairs: the two indices the mask is over.
        tile: edge of the squares that the kernel works in, if it leaves out those without a useful pair; otherwise it
            does all pairs.
    """

    equation: str
    mask: Mask | None = None
    pairs: str = ""
    tile: Tile | None = None

    family = "gemm"

    def terms(self) -> tuple[str, str, str]:
        operands, result = self.equation.split("->")
        left, right = operands.split(",")
        return left, right, result

    def sizes(self, left: Tensor, right: Tensor) -> dict[str, Dim]:
        """The dimension of each index.

        Raises:
            ValueError: when an index has two sizes, or an operand has another number of axes than its term.
        """
        sizes: dict[str, Dim] = {}
        for term, operand in zip(self.terms(), (left, right), strict=False):
            if len(term) != len(operand.shape):
                raise ValueError(f"'{term}' of '{self.equation}' needs {len(term)} axes, not shape {operand.shape}")
            for index, size in zip(term, operand.shape, strict=True):
                if not same(sizes.setdefault(index, size), size):
                    raise ValueError(f"index '{index}' of '{self.equation}' is both {sizes[index]} and {size}")
        return sizes

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        left, right = inputs
        sizes = self.sizes(left, right)
        return (Spec(tuple(sizes[index] for index in self.terms()[2]), left.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        sizes = self.sizes(*inputs)
        skips = reading is Reading.EXECUTED and self.tile is not None
        if self.mask is None or not (skips or reading is Reading.USEFUL):
            return {"contraction": 2 * product(sizes.values())}
        n_q, n_k = (sizes.pop(index) for index in self.pairs)
        pairs = self.mask.executed_pairs(n_q, n_k, self.tile) if skips else self.mask.useful_pairs(n_q, n_k)
        return {"contraction": 2 * product(sizes.values()) * pairs}

    def front(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Dim:
        """Those of one more row, one more column and one more summand: operands and result are brought to and from
        where tiles are multiplied.
        """
        sizes = self.sizes(*inputs)
        left, right, result = self.terms()
        sides = (product(sizes[index] for index in term) for term in (left, right, result))
        return 2 * sum(sides)

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        left, right, result = self.terms()
        sizes = self.sizes(*inputs)
        rows = product(sizes[index] for index in result if index not in right)
        columns = product(sizes[index] for index in result if index not in left)
        summed = product(sizes[index] for index in left if index in right and index not in result)
        copied = minimum(rows - 1, 1) * minimum(columns - 1, 1)  # a matrix times a vector reads it as it is
        apart = minimum(floor_div(summed * inputs[0].width, PAGE), 1)  # each row is in pages of its own
        sides = {"left": copied * inputs[0].bytes, "right": copied * inputs[1].bytes}
        return {**sides, "apart": apart * sides["left"], "result": outputs[0].bytes}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        left, right, result = self.terms()
        return (
            lambda: ops.apply(replace(self, equation=f"{result},{right}->{left}"), gradients[0], inputs[1])[0],
            lambda: ops.apply(replace(self, equation=f"{result},{left}->{right}"), gradients[0], inputs[0])[0],
        )
