"""Documents packed into one sequence: how many query-key pairs lie in one and the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from costmodel.dims import Dim, floor_div, maximum, minimum
from costmodel.expression import call

#: Up to a number of the first queries of a document, and up to one of its first keys: the pairs that a rule leaves.
Corner = Callable[[Dim, Dim], Dim]

#: First place of a stretch of a sequence, and the one after its last.
Span = tuple[Dim, Dim]

#: More documents of different lengths than this make formulas too long.
MOST = 512


@dataclass(frozen=True)
class Documents:
    """Documents that lie end to end in one sequence, whose tokens see none of another.

    What comes after the last one is padding: a document of its own or, after equal ones, more of these.
    """

    lengths: tuple[int, ...]

    @cached_property
    def equal(self) -> int | None:
        """The length of every document, if it is one."""
        return self.lengths[0] if len(set(self.lengths)) == 1 else None

    @cached_property
    def counted(self) -> Counter[int]:
        """How many documents have a length."""
        return Counter(self.lengths)

    def spans(self, length: int) -> Iterator[tuple[int, int]]:
        """Every document of a sequence of so many tokens, its padding included."""
        ends = [end for end in accumulate(self.lengths) if end < length]
        if self.equal is not None:
            ends = list(range(self.equal, length, self.equal))
        yield from zip([0, *ends], [*ends, length], strict=True)

    def each(self, length: Dim) -> Iterator[tuple[Dim, Dim]]:
        """Every document by itself, whatever their lengths, and all that comes after the last one, which may be none.

        For places in which equal documents are not alike.
        """
        ends = [*accumulate(self.lengths)]
        yield from zip([0, *ends], [*ends, length], strict=True)

    def pairs(self, corner: Corner, queries: Span, keys: Span) -> Dim:
        """Pairs of a stretch of queries with a stretch of keys.

        >>> Documents((3, 5)).pairs(lambda x, y: x * y, (2, 6), (0, 8))
        18
        """
        (start, end), (first, last) = queries, keys
        above = self._upto(corner, end, last) - self._upto(corner, start, last)
        found = above - (self._upto(corner, end, first) - self._upto(corner, start, first))
        return call("sum", found)  # one factor of whatever is made of it, however many documents there are

    def _upto(self, corner: Corner, x: Dim, y: Dim) -> Dim:
        """Pairs of the first x queries and the first y keys of the sequence."""
        if self.equal is not None:
            whole = floor_div(minimum(x, y), self.equal)
            within = (minimum(n - whole * self.equal, self.equal) for n in (x, y))
            return whole * corner(self.equal, self.equal) + corner(*within)
        found: Dim = 0
        begin = 0
        for size in self.lengths:
            found += corner(*(minimum(maximum(n - begin, 0), size) for n in (x, y)))
            begin += size
        return found + corner(maximum(x - begin, 0), maximum(y - begin, 0))


@dataclass(frozen=True)
class Packed:
    """Tokens of packed documents that follow on each other.

    Attributes:
        start: which token of the sequence is the first of them.
    """

    documents: Documents
    start: Dim = 0
