"""BigBird's blocks: what each row sees, and that ranks have the rows of the whole."""

from __future__ import annotations

import pytest
import torch

from costmodel.ops.block_table import BlockTable
from validate.executor import Executor

HEADS = torch.tensor([4, 2])


@pytest.mark.parametrize("random", [0, 3])
def test_rows_see_neighbours_ends_and_other_blocks(random: int) -> None:
    blocks = 9
    edges, middle = Executor(torch.float32).apply(BlockTable(blocks, 0, blocks, (1, 1), random), HEADS)
    assert edges.shape == (2, 2, 4 + random)
    assert middle.shape == (2, blocks - 4, 5 + random)
    rows = {1: edges[:, 0], blocks - 2: edges[:, 1]} | {i: middle[:, i - 2] for i in range(2, blocks - 2)}
    for row, heads in rows.items():
        for seen in heads.tolist():
            assert len(set(seen)) == len(seen)
            assert {0, row - 1, row, row + 1, blocks - 1} <= set(seen) <= set(range(blocks))


def test_heads_differ() -> None:
    _, middle = Executor(torch.float32).apply(BlockTable(40, 0, 40, (1, 1), 3), HEADS)
    assert not torch.equal(middle[0], middle[1])


def test_ranks_have_the_rows_of_the_whole() -> None:
    ops = Executor(torch.float32)
    edges, middle = ops.apply(BlockTable(12, 0, 12, (1, 1), 2), HEADS)
    places = (1, 0), (0, 0), (0, 1)
    parts = [ops.apply(BlockTable(12, 4 * rank, 4, there, 2), HEADS) for rank, there in enumerate(places)]
    for whole, pieces in zip((edges, middle), zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces, 1), whole)
