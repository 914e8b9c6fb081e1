"""2-D tiles of scores: queries gathered along one axis of a grid of ranks, keys and values along the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from costmodel.carries.pairs import Pairs, merged
from costmodel.dims import Dim, divide
from costmodel.masks import Mask
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.places import Comb
from costmodel.strategies.all_gather import Gathered, Piece
from costmodel.strategy import (
    Requirement,
    Situation,
    Strategy,
    each_by_itself,
    equal_halves_on_grid,
    only_fused,
    only_passes,
)

T = TypeVar("T")


class Tile(Strategy):
    """Each rank computes the scores of its row's queries and its column's keys, L / P_c x L / P_u of them.

    Partial outputs go back along the row, by all-to-all with their log-sum-exps. A rank sends P_u - 1 times its queries
    and outputs and P_c - 1 times its keys and values: of the order of L / sqrt(P) where the grid is square, and least
    with P_u = sqrt(P H_kv / H). Zigzag order along both axes gives every rank the same work under a causal mask.
    """

    name: ClassVar[str] = "tile"
    title: ClassVar[str] = "2-D tiles: queries along rows of ranks, keys and values along columns"
    source: ClassVar[str] = "Elango 2025 (Attention2D), arXiv 2503.15758; Chen et al. 2025 (Mesh), arXiv 2512.20968"
    axes: ClassVar[tuple[str, ...]] = ("ulysses", "context")
    layout: ClassVar[str] = "zigzag"
    extends: ClassVar[bool] = True
    inner_layout: ClassVar[str] = "zigzag"
    documents: ClassVar[bool] = True

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield only_passes(at, "forward", "train", "prefill")
        yield only_fused(at)
        yield Requirement(at.window is None, "most tiles are outside of a window: use window-halo")
        yield each_by_itself(at)
        yield equal_halves_on_grid(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Pairs[T]) -> T:
        tile = _Tile(axes["ulysses"], axes["context"], carry, carry.cached(ops)[1])
        result: T = ops.custom(tile.forward, tile.backward, carry.q, carry.k, carry.v)
        return result


class _Tile(Gathered):
    """The algorithm: ``row`` is the axis along which queries are gathered."""

    def __init__(self, row: Axis, column: Axis, pairs: Pairs[Any], cached: Dim) -> None:
        super().__init__(column, pairs, cached)
        self.row = row

    def pieces(self, n: Dim, keys: Dim) -> list[Piece]:
        """Of the row's n queries, those before this rank's own, its own, and those after, in each of two halves.

        A row holds stretches c and 2 P_c - 1 - c of 2 P_c, a column one part of every stretch.
        """
        columns, ranks, half = self.axis.size, self.row.size, divide(n, 2)
        part, cached = divide(half, ranks), columns * self.cached
        stretches = self.axis.rank, 2 * columns - 1 - self.axis.rank
        if not self.mask.causal:
            if self.mask.documents is None:
                return [Piece(0, n, 0, keys, self.mask)]
            return [
                Piece(number * half, half, 0, keys, self._mask(half, (stretch * half, half), 2 * columns * half))
                for number, stretch in enumerate(stretches)
            ]
        found = []
        for number, (stretch, own) in enumerate(
            zip(stretches, (self.row.rank, ranks - 1 - self.row.rank), strict=True)
        ):
            for first, count, seen, causal in (
                (0, own, stretch, False),
                (own, 1, stretch + 1, True),
                (own + 1, ranks - 1 - own, stretch + 1, False),
            ):
                place, size = first * part, count * part
                limit = stretch * half + place + part if causal else seen * half
                mask = self._mask(half, (stretch * half + place, size), limit, causal)
                found.append(Piece(number * half + place, size, 0, cached + seen * part, mask))
        return found

    def _mask(self, half: Dim, queries: tuple[Dim, Dim], limit: Dim, causal: bool = False) -> Mask:
        """The mask between a stretch of queries (its start and size) and the column's keys before a place.

        Args:
            half: tokens of a stretch of the whole sequence.
        """
        ranks, columns, (start, size) = self.row.size, self.axis.size, queries
        early, late = self.row.rank, ranks - 1 - self.row.rank
        places = columns * half, limit, 2 * columns * half  # the middle, and the end
        comb = Comb((start, start + size), half, divide(half, ranks), early, late, *places, causal)
        return replace(self.mask, causal=causal).placed(comb)

    def along_row(self, ops: Vocabulary[T], *queries: T) -> tuple[T, ...]:
        return tuple(ops.all_gather(x, self.row, 2, "zigzag") for x in queries)

    def forward(self, ops: Vocabulary[T], q: T, k: T, v: T) -> tuple[T, tuple[T, ...]]:
        parts = self.attend(ops, *self.along_row(ops, q), *self.gather(ops, k, v))
        stacked = [ops.reshape(x, (1, *ops.shape(x))) for x in parts]
        out, lse = merged(ops, *(ops.all_to_all(x, self.row, 3, 0, "zigzag") for x in stacked))
        return out, (q, k, v, out, lse)

    def backward(self, ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T, ...]:
        q, k, v, out, lse = saved
        queries, keys = self.along_row(ops, q, out, lse, gradient), self.gather(ops, k, v)
        dq, *of_all = self.gradients(ops, queries, keys)
        own = ops.reduce_scatter(ops.cast(dq, "gradient"), self.row, 2, "zigzag")
        return (ops.cast(own, "model"), *self.scatter(ops, *of_all))


tile = Tile()
