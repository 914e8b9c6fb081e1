"""The blocks of keys that each block of queries sees in BigBird (arXiv 2007.14062): a constant, drawn by a seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from costmodel.dims import Dim
from costmodel.ops.primitive import Primitive, Spec
from costmodel.ops.selection import INDEX_WIDTH
from costmodel.tensor import Tensor


@dataclass(frozen=True)
class BlockTable(Primitive):
    """Numbers of blocks that the blocks of a rank see, for heads of given numbers [H]; none for those that see all.

    Two tables: [H, edges, 4 + random] of the second block of the sequence and the last but one, where they are on this
    rank, and [H, middle, 5 + random] of those between. A block sees the first and the last, itself and its neighbours,
    and random ones; at the edges a neighbour is the first or the last.

    Attributes:
        blocks: of the whole sequence.
        start, rows: the first block of this rank, and how many it has.
        ends: 1 if this rank has the first block, else 0; and the same for the last.
        random: blocks that are seen besides.
    """

    blocks: Dim
    start: Dim
    rows: Dim
    ends: tuple[Dim, Dim]
    random: Dim

    family = "copy"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        heads, edges = inputs[0].shape[0], sum(self.ends)
        shapes = (heads, edges, 4 + self.random), (heads, self.rows - 2 * edges, 5 + self.random)
        return tuple(Spec(shape, INDEX_WIDTH, differentiable=False) for shape in shapes)


def random_blocks(head: int, row: int, blocks: int, count: int) -> list[int]:
    """The blocks that a head's row of blocks sees besides its neighbours, the first and the last, all distinct.

    >>> len(random_blocks(head=0, row=3, blocks=8, count=3)), set(random_blocks(0, 3, 8, 3)) == {1, 5, 6}
    (3, True)
    """
    others = [block for block in range(1, blocks - 1) if abs(block - row) > 1]
    return Random(f"{head} {row}").sample(others, count)
