"""BigBird's blocks as a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from costmodel.ops.block_table import BlockTable, random_blocks
from validate.kernels.registry import Runner, runs


@runs(BlockTable)
def block_table(primitive: BlockTable, ops: Runner, heads: Tensor) -> tuple[Tensor, ...]:
    last = primitive.blocks - 1
    own = range(primitive.start, primitive.start + primitive.rows)
    groups = [i for i in own if i in (1, last - 1)], [i for i in own if 1 < i < last - 1]

    def seen(head: int, row: int) -> list[int]:
        known = {0, row - 1, row, row + 1, last}
        return sorted(known) + random_blocks(head, row, primitive.blocks, primitive.random)

    shapes = (spec.shape for spec in primitive.outputs(heads))  # type: ignore[arg-type]
    return tuple(
        torch.tensor([[seen(head, row) for row in rows] for head in heads.tolist()], device=heads.device).view(shape)
        for rows, shape in zip(groups, shapes, strict=True)
    )
