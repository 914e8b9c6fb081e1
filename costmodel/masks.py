"""Attention masks, and how many query-key pairs they leave.

A mask is aligned to the end, as in FlashAttention: the last query stands at the last key, or so many keys ahead of it
as the mask says. With n_q queries and n_k >= n_q keys, query i stands at key position n_k - ahead - n_q + i.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from costmodel.dims import Dim, ceil_div, clip, divide, floor_div, is_number, maximum, minimum
from costmodel.documents import Documents, Span
from costmodel.places import Place, Stretches, triangle


@dataclass(frozen=True)
class Columns:
    """How a fused kernel that cuts nothing into squares goes through scores: blocks of queries by columns of keys.

    Attributes:
        keys: of a column; under a causal mask, each up to the one that the diagonal goes through is computed in whole.
        edge: of the squares that stand for what it does under any other mask.
    """

    keys: int
    edge: int


#: Edge of a kernel's squares, or its columns.
Tile = Dim | Columns


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees: all, or those up to itself (causal), or the last ``window`` of these.

    A window without causality sees ``window - 1`` keys on either side.

    Attributes:
        ahead: keys after the last query's own, of a stretch of queries with a window on both sides; fewer than
            ``window``.
        stride: tokens that a key stands for, all of which a query must have reached to see it; of causal masks without
            window, over whole strides of queries of which the last stands at the last token of the last key.
        documents: packed into the sequence; a query sees no key of another.
        place: of queries and keys among the documents, where it is not all keys and the last queries.
    """

    causal: bool = False
    window: Dim | None = None
    ahead: Dim = 0
    stride: Dim = 1
    documents: Documents | None = None
    place: Place | None = None

    def at(self, queries: tuple[Span, ...], keys: tuple[Span, ...], calls: Dim = 1) -> Mask:
        """The mask between stretches of the sequence; where there are no documents, the same anywhere.

        Under a causal mask the last stretch of queries ends where the last of keys does, and so on for those before.
        """
        return self.placed(Stretches(queries, keys, self.causal, calls))

    def placed(self, place: Place) -> Mask:
        """The mask somewhere else in the sequence; where there are no documents, the same anywhere."""
        return self if self.documents is None else replace(self, place=place)

    @property
    def within(self) -> Mask:
        """The mask inside one document."""
        return replace(self, documents=None, place=None)

    def where(self, n_q: Dim, n_k: Dim) -> Place:
        """Where so many queries and keys are."""
        return self.place or Stretches(((n_k - n_q, n_k),), ((0, n_k),), self.causal)

    def dense_pairs(self, n_q: Dim, n_k: Dim) -> Dim:
        """Pairs without regard to order: all of them, or all of one document."""
        if self.documents is None:
            return n_q * n_k
        place = self.where(n_q, n_k)
        return divide(place.dense(self.documents), place.calls)

    def corner(self, x: Dim, y: Dim) -> Dim:
        """Pairs of the first x queries and the first y keys of a sequence, or of a document.

        >>> Mask().corner(2, 3), Mask(causal=True).corner(4, 2), Mask(causal=True, window=2).corner(4, 4)
        (6, 7, 7)
        """
        if self.window is None:
            return _staircase(x, y) if self.causal else x * y
        behind = _staircase(x, y) - _staircase(maximum(x - self.window, 0), y)
        if self.causal:
            return behind
        return behind + _staircase(y, x) - _staircase(maximum(y - self.window, 0), x) - minimum(x, y)

    def useful_pairs(self, n_q: Dim, n_k: Dim) -> Dim:
        """Query-key pairs that the mask leaves.

        >>> Mask(causal=True).useful_pairs(4, 4), Mask(causal=True, window=2).useful_pairs(4, 4)
        (10, 7)
        >>> Mask().useful_pairs(2, 5), Mask(window=2).useful_pairs(4, 4), Mask(window=2, ahead=1).useful_pairs(2, 4)
        (10, 10, 6)
        >>> Mask(causal=True, stride=2).useful_pairs(4, 2), Mask(causal=True, stride=2).useful_pairs(2, 2)
        (4, 3)
        """
        if self.documents is not None:
            place = self.where(n_q, n_k)
            return divide(place.useful(self.documents, self.corner), place.calls)
        if not is_number(self.stride, 1):
            pieces = divide(n_q, self.stride)
            return self.stride * (pieces * (n_k - pieces) + triangle(pieces - 1)) + pieces
        if self.window is None:
            return n_q * n_k - (triangle(n_q - 1) if self.causal else 0)
        seen = self._one_sided(n_k - self.ahead - n_q, n_q)
        return seen if self.causal else seen + self._one_sided(self.ahead, n_q) - n_q

    def _tiled(self, tile: Tile) -> Dim:
        """Executed pairs over useful ones, of whole documents each on its own: taken for the same in parts of them."""
        assert self.documents is not None
        lengths, rule = self.documents.counted.items(), self.within
        executed = sum(count * rule.executed_pairs(n, n, tile) for n, count in lengths)
        return executed * Fraction(1, sum(count * rule.useful_pairs(n, n) for n, count in lengths))

    def _one_sided(self, before: Dim, n_q: Dim) -> Dim:
        """Pairs of each query with its own key and those of its window to one side, where so many keys go before."""
        assert self.window is not None
        ramp = clip(self.window - 1 - before, 0, n_q)
        return ramp * (before + 1) + triangle(ramp - 1) + (n_q - ramp) * self.window

    def executed_pairs(self, n_q: Dim, n_k: Dim, tile: Tile) -> Dim:
        """Pairs that a kernel working in ``tile`` x ``tile`` squares computes: every square with an unmasked pair.

        >>> Mask(causal=True).executed_pairs(4, 4, 2), Mask(causal=True).executed_pairs(4, 4, 1)
        (12, 10)
        >>> Mask(causal=True).executed_pairs(5, 6, Columns(2, 1)), Mask().executed_pairs(3, 3, Columns(2, 2))
        (22, 9)
        """
        if self.documents is not None:
            return self.useful_pairs(n_q, n_k) * self._tiled(tile)
        if isinstance(tile, Columns):
            plain = self.window is None and is_number(self.stride, 1)
            return self._in_columns(n_q, n_k, tile.keys) if plain else self.executed_pairs(n_q, n_k, tile.edge)
        rows, columns = ceil_div(n_q, tile), ceil_div(n_k, tile)
        if not is_number(self.stride, 1):
            shift = self.stride - ceil_div(n_q + self.stride * (1 - n_k), tile)
            upto = _floors(rows - 1 + shift, self.stride) - _floors(shift, self.stride)
            return (upto + columns) * tile * tile
        before = n_k - self.ahead - n_q
        if self.causal:
            end = triangle(rows - 1) + (rows - 1) * ceil_div(before, tile) + columns
        elif self.window is not None:
            reached = ceil_div(before + self.window - 1, tile)
            ramp = clip(columns - reached, 0, rows)
            end = triangle(ramp) + ramp * reached + (rows - ramp) * columns
        else:
            end = rows * columns
        skipped: Dim = 0
        if self.window is not None:
            first = floor_div(before - self.window + 1, tile)
            skipped = triangle(maximum(rows + first, 0) - 1) - triangle(maximum(first, 0) - 1)
        return (end - skipped) * tile * tile

    def _in_columns(self, n_q: Dim, n_k: Dim, keys: int) -> Dim:
        """Queries up to the end of column c see c columns; those of the last, which may be cut off, all keys.

        Keys before the first query's own are a piece of their own, which the mask does not touch.
        """
        if not self.causal:
            return n_q * n_k
        whole = floor_div(n_q, keys)
        return keys * keys * triangle(whole) + (n_q - keys * whole) * n_q + n_q * (n_k - n_q)


def _staircase(x: Dim, y: Dim) -> Dim:
    """Pairs of the first x queries with those of the first y keys that are not after them."""
    both = minimum(x, y)
    return triangle(both) + (x - both) * both


def _floors(n: Dim, size: Dim) -> Dim:
    """The sum of floor(i / size) for i from 0 to n."""
    whole = floor_div(n, size)
    return size * triangle(whole - 1) + whole * (n + 1 - whole * size)
