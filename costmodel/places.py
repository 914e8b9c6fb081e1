"""Where the queries and keys of one call of attention are in a sequence of packed documents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from costmodel.dims import Dim, ceil_div, clip, divide, floor_div, maximum, minimum
from costmodel.documents import Corner, Documents, Span
from costmodel.expression import call


@dataclass(frozen=True)
class Square:
    """Queries and keys of one document that a kernel takes at once, each from one row of its tensor up to another.

    Attributes:
        ruled: whether the mask's own rule holds between them, aligned to their ends; else all pairs are seen.
        ahead: keys after the last query's own.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    ruled: bool
    ahead: int = 0


class Place(ABC):
    """Where queries and keys are, and so which of them meet in a document.

    Attributes:
        calls: of a formula, for how many calls the keys (or queries) are, each of which has a like share of the pairs.
    """

    calls: Dim

    @abstractmethod
    def dense(self, documents: Documents) -> Dim:
        """Pairs of one document that kernels go through, without regard to order."""

    @abstractmethod
    def useful(self, documents: Documents, corner: Corner) -> Dim:
        """Those of them that a mask leaves, which ``corner`` says of the beginning of a document."""

    @abstractmethod
    def spans(self, documents: Documents) -> Iterator[Span]:
        """Where every document is."""

    @abstractmethod
    def squares(self, documents: Documents) -> Iterator[Square]:
        """What kernels are called for; of numbers."""

    @abstractmethod
    def tokens(self) -> tuple[Sequence[range], Sequence[range]]:
        """Places of the queries, and of the keys, in the sequence; of numbers."""


def all_pairs(x: Dim, y: Dim) -> Dim:
    """The corner in which every query sees every key."""
    return x * y


def triangle(n: Dim) -> Dim:
    """1 + 2 + ... + n."""
    return divide(n * (n + 1), 2)


@dataclass(frozen=True)
class Stretches(Place):
    """Stretches of the sequence, in its order.

    Attributes:
        causal: whether the last stretch of queries ends where the last of keys does, and so on for those before, and
            no later one is seen.
    """

    queries: tuple[Span, ...]
    keys: tuple[Span, ...]
    causal: bool = False
    calls: Dim = 1

    def dense(self, documents: Documents) -> Dim:
        return self.useful(documents, all_pairs)

    def useful(self, documents: Documents, corner: Corner) -> Dim:
        found: Dim = 0
        for queries, keys, _ in self._meeting():
            found += documents.pairs(corner, queries, keys)
        return found

    def _meeting(self) -> Iterator[tuple[Span, Span, bool]]:
        """Each stretch of queries with each of keys that it may see, and whether both end at one place."""
        for i, queries in enumerate(self.queries):
            own = i + len(self.keys) - len(self.queries)
            for j, keys in enumerate(self.keys):
                if not self.causal or j <= own:
                    yield queries, keys, j == own

    def spans(self, documents: Documents) -> Iterator[Span]:
        return documents.spans(max(end for _, end in (*self.queries, *self.keys)))

    def squares(self, documents: Documents) -> Iterator[Square]:
        first_row, first_column = _first_rows(self.queries), _first_rows(self.keys)
        for queries, keys, ruled in self._meeting():
            for begin, end in self.spans(documents):
                rows, columns = ((max(begin, span[0]), min(end, span[1])) for span in (queries, keys))
                if rows[0] < rows[1] and columns[0] < columns[1]:
                    yield Square(
                        _moved(rows, first_row[queries] - queries[0]),
                        _moved(columns, first_column[keys] - keys[0]),
                        ruled,
                        columns[1] - rows[1],
                    )

    def tokens(self) -> tuple[Sequence[range], Sequence[range]]:
        return [range(*span) for span in self.queries], [range(*span) for span in self.keys]


def _first_rows(spans: Sequence[Span]) -> dict[Span, int]:
    """Where stretches begin among a tensor's rows."""
    found: dict[Span, int] = {}
    for span in spans:
        found[span] = sum(end - start for start, end in found)
    return found


def _moved(span: tuple[int, int], by: int) -> tuple[int, int]:
    return span[0] + by, span[1] + by


class _Each(Place):
    """A place in which equal documents are not alike.

    Attributes:
        length: tokens of the sequence.
    """

    length: Dim

    def spans(self, documents: Documents) -> Iterator[Span]:
        return documents.each(self.length)


@dataclass(frozen=True)
class Stripes(_Each):
    """Every ``ranks``-th token: queries of one rank, and keys of ``count`` ranks from ``first`` on.

    Under a causal mask query i sees the first i + 1 keys of its own rank and of those before it, and the first i of
    those after it; keys are of one of these kinds. What is left of a document is therefore a triangle for each rank of
    keys: of queries from the one that sees its first key on, and as many keys.

    Attributes:
        rank: of the queries.
        later: whether the ranks of the keys come after it.
    """

    ranks: Dim
    rank: Dim
    first: Dim
    count: Dim
    later: bool
    length: Dim
    calls: Dim = 1

    def dense(self, documents: Documents) -> Dim:
        return self._of_edges(documents, all_pairs)

    def useful(self, documents: Documents, corner: Corner) -> Dim:
        return self._of_edges(documents, corner)

    def _of_edges(self, documents: Documents, corner: Corner) -> Dim:
        """The sum over documents and ranks of keys.

        A document's first key is row ceil((begin - s) / P) on rank s: one more on ranks below begin mod P.
        """
        found: Dim = 0
        for begin, end in self.spans(documents):
            row = floor_div(begin, self.ranks)
            more = clip(begin - row * self.ranks - self.first, 0, self.count)
            edge = self._end(end) - row
            for count, left in ((more, edge - 1), (self.count - more, edge)):
                size = maximum(left, 0)
                found += count * corner(size, size)
        return call("sum", found)

    def _end(self, end: Dim) -> Dim:
        """The row after the last key that a query before this place sees."""
        return ceil_div(end - self.rank, self.ranks) - (1 if self.later else 0)

    def squares(self, documents: Documents) -> Iterator[Square]:
        for begin, end in self.spans(documents):
            columns = ceil_div(begin - self.first, self.ranks), self._end(end)
            if columns[0] < columns[1]:
                yield Square(_moved(columns, 1 if self.later else 0), columns, ruled=True)

    def tokens(self) -> tuple[Sequence[range], Sequence[range]]:
        ends = [range(rank, self.length, self.ranks) for rank in (self.rank, self.first)]
        return ends[:1], ends[1:]


@dataclass(frozen=True)
class Comb(_Each):
    """A stretch of queries, and of every stretch of the sequence one of its equal parts as keys.

    Attributes:
        period: tokens of a stretch, ``part``: of its part.
        early, late: which part it is of the stretches before ``middle``, and of those after it.
        limit: only keys before this place.
        causal: whether the last query is the last key.
    """

    queries: Span
    period: Dim
    part: Dim
    early: Dim
    late: Dim
    middle: Dim
    limit: Dim
    length: Dim
    causal: bool = False
    calls: Dim = 1

    def dense(self, documents: Documents) -> Dim:
        return self._counted(documents, causal=False)

    def useful(self, documents: Documents, corner: Corner) -> Dim:
        return self._counted(documents, self.causal)

    def _counted(self, documents: Documents, causal: bool) -> Dim:
        found: Dim = 0
        for begin, end in self.spans(documents):
            start, stop = (clip(place, *self.queries) for place in (begin, end))
            rows = stop - start
            found += rows * (self.rank(end) - self.rank(begin))
            found -= triangle(rows - 1) if causal else 0
        return call("sum", found)

    def rank(self, place: Dim) -> Dim:
        """How many keys come before a place."""
        place = minimum(place, self.limit)
        above = maximum(place, self.middle)
        early = self._parts(minimum(place, self.middle), self.early)
        return early + self._parts(above, self.late) - self._parts(self.middle, self.late)

    def _parts(self, place: Dim, which: Dim) -> Dim:
        """Tokens before a place that are in one part of each stretch."""
        whole = floor_div(place, self.period)
        return whole * self.part + clip(place - whole * self.period - which * self.part, 0, self.part)

    def squares(self, documents: Documents) -> Iterator[Square]:
        for begin, end in self.spans(documents):
            start, stop = (clip(place, *self.queries) for place in (begin, end))
            columns = self.rank(begin), self.rank(end)
            if start < stop and columns[0] < columns[1]:
                yield Square(_moved((start, stop), -self.queries[0]), columns, self.causal)

    def tokens(self) -> tuple[Sequence[range], Sequence[range]]:
        keys = []
        for begin in range(0, self.limit, self.period):
            first = begin + (self.early if begin < self.middle else self.late) * self.part
            keys.append(range(first, first + self.part))
        return [range(*self.queries)], keys
