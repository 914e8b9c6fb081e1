"""How a dimension is spread over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "zigzag", "striped")


def pieces(size: int, ranks: int, rank: int, layout: str) -> list[range]:
    """The entries of a dimension that a rank holds, piece by piece, in the order in which it holds them.

    >>> pieces(12, 3, 0, "contiguous"), pieces(12, 3, 0, "zigzag"), pieces(12, 3, 1, "striped")
    ([range(0, 4)], [range(0, 2), range(10, 12)], [range(1, 12, 3)])

    Raises:
        ValueError: when the dimension does not divide, or for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"no layout named '{layout}'; known: {', '.join(LAYOUTS)}")
    numbers = [rank, 2 * ranks - 1 - rank] if layout == "zigzag" else [rank]
    length, rest = divmod(size, ranks * len(numbers))
    if rest:
        raise ValueError(f"{size} entries do not divide into {ranks * len(numbers)} pieces of a {layout} layout")
    if layout == "striped":
        return [range(rank, size, ranks)]
    return [range(number * length, (number + 1) * length) for number in numbers]


def _view(x: Tensor, dim: int, piece: range) -> Tensor:
    return x[(slice(None),) * dim + (slice(piece.start, piece.stop, piece.step),)]


def shard(x: Tensor, dim: int, ranks: int, rank: int, layout: str = "contiguous") -> Tensor:
    """The part of a dimension that a rank holds: a view where that is one piece."""
    parts = [_view(x, dim, piece) for piece in pieces(x.shape[dim], ranks, rank, layout)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def place(whole: Tensor, part: Tensor, dim: int, ranks: int, rank: int, layout: str = "contiguous") -> None:
    """Write a rank's part into its places of the whole dimension; the inverse of ``shard``."""
    begin = 0
    for piece in pieces(whole.shape[dim], ranks, rank, layout):
        _view(whole, dim, piece).copy_(part.narrow(dim, begin, len(piece)))
        begin += len(piece)


def unshard(parts: Sequence[Tensor], dim: int, layout: str = "contiguous") -> Tensor:
    """The whole dimension from the parts of all ranks, in the order of their ranks."""
    shape = list(parts[0].shape)
    shape[dim] *= len(parts)
    whole = parts[0].new_empty(shape)
    for rank, part in enumerate(parts):
        place(whole, part, dim, len(parts), rank, layout)
    return whole


@dataclass(frozen=True)
class Level:
    """One of the axes that a dimension is spread over: its ranks, and how the dimension lies on them."""

    ranks: int
    layout: str = "contiguous"


def shard_nested(x: Tensor, dim: int, levels: Sequence[Level], indices: Sequence[int]) -> Tensor:
    """The part of a dimension held by the rank of these indices: each level cuts what the one before it left.

    >>> shard_nested(torch.arange(8), 0, [Level(2, "zigzag"), Level(2)], (0, 1))
    tensor([6, 7])
    """
    for level, index in zip(levels, indices, strict=True):
        x = shard(x, dim, level.ranks, index, level.layout)
    return x


def unshard_nested(parts: Sequence[Tensor], dim: int, levels: Sequence[Level]) -> Tensor:
    """The inverse of ``shard_nested``, from the parts of all ranks, the last level's index fastest."""
    for level in reversed(levels):
        parts = [
            unshard(parts[start : start + level.ranks], dim, level.layout)
            for start in range(0, len(parts), level.ranks)
        ]
    (whole,) = parts
    return whole
