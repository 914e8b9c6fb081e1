"""Matrix products on real tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from costmodel.ops.contraction import Contract
from validate.kernels.registry import Runner, runs


@runs(Contract)
def contract(primitive: Contract, ops: Runner, a: Tensor, b: Tensor) -> Tensor:
    """One batched matrix product, at the precision of the first operand.

    Not ``torch.einsum``, which multiplies elementwise where a summed index has size 1 and so is not counted.
    """
    left, right, result = primitive.terms()
    size = dict(zip(left + right, (*a.shape, *b.shape), strict=True))
    batch = [i for i in left if i in right and i in result]
    summed = [i for i in left if i in right and i not in result]
    rows, columns = [i for i in left if i not in right], [i for i in right if i not in left]

    def matrices(x: Tensor, term: str, *groups: list[str]) -> Tensor:
        order = [term.index(i) for group in groups for i in group]
        return x.permute(order).reshape([torch.Size(size[i] for i in group).numel() for group in groups])

    b = b.to(a.dtype)
    order = [*batch, *rows, *columns]
    if [*batch, *columns, *rows] == list(result):  # the other way round it is dense: nobody will ask for a copy
        order = [*batch, *columns, *rows]
        product = torch.bmm(matrices(b, right, batch, columns, summed), matrices(a, left, batch, summed, rows))
    else:
        product = torch.bmm(matrices(a, left, batch, rows, summed), matrices(b, right, batch, summed, columns))
    return product.view([size[i] for i in order]).permute([order.index(i) for i in result])
