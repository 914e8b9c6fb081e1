"""Halo exchange for attention in a window: the keys and values at a cut, from the neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from costmodel.carries.pairs import Pairs
from costmodel.dims import Dim, minimum
from costmodel.documents import Span
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_halves, equal_stretches

T = TypeVar("T")


class WindowHalo(Strategy):
    """Each rank gets the keys and values that its queries' windows reach beyond its own tokens.

    What is sent does not depend on the number of tokens, and all ranks but those at the ends work alike. The ends have
    no neighbour: nothing is computed in its place.
    """

    name: ClassVar[str] = "window-halo"
    title: ClassVar[str] = "halo exchange of a window's keys and values"
    source: ClassVar[str] = "Beltagy et al. 2020, arXiv 2004.05150, section 3.1, windows; halos as in stencil codes"
    axes: ClassVar[tuple[str, ...]] = ("context",)
    windowed: ClassVar[bool] = True
    documents: ClassVar[bool] = True
    stretches: ClassVar[int] = 1  #: that the layout gives a rank

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield Requirement(at.window is not None, "without a window a query sees more than its neighbours' tokens")
        yield from equal_stretches(at)
        yield Requirement(
            np.greater_equal(at.length / (at.context * self.stretches), (at.window or 1) - 1),
            "a window of {window} reaches past the stretch before it of {length} tokens over {context} ranks",
        )

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Pairs[T]) -> T:
        axis, reach = axes["context"], _reach(carry)
        first, last = 1 - minimum(axis.rank, 1), 1 - minimum(axis.size - 1 - axis.rank, 1)
        after: Dim = 0 if carry.mask.causal else reach
        begin, ahead = reach * first, after * (1 - last)
        size = ops.shape(carry.k)[2] + (reach - begin) + ahead
        k, v = (ops.slice(ops.halo(x, 2, reach, after, axis), 2, begin, size) for x in (carry.k, carry.v))
        n = ops.shape(carry.q)[2]
        mask = replace(carry.mask, ahead=ahead).at(*_places(axis.rank, n, reach - begin, ahead))
        return replace(carry, k=k, v=v, mask=mask).whole(ops)


class WindowZigzag(WindowHalo):
    """The same for the layout that balances the causal layers between those with a window.

    Rank r holds stretches r and 2 P - 1 - r of 2 P: the first reaches back to rank r - 1, the second to rank r + 1, and
    on the last rank to the first.
    """

    name: ClassVar[str] = "window-zigzag"
    title: ClassVar[str] = "halo exchange of a window's keys and values, in the layout of zigzag"
    layout: ClassVar[str] = "zigzag"
    stretches: ClassVar[int] = 2

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield Requirement(at.causal, "it balances causal masks; without one every rank works alike: use window-halo")
        yield from super().requirements(at)
        yield equal_halves(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Pairs[T]) -> T:
        axis, reach = axes["context"], _reach(carry)
        missing = reach * (1 - minimum(axis.rank, 1))
        queries, keys, values = (ops.halves(x, 2) for x in carry.streams())
        found = [_before(ops, x, reach, axis) for x in (keys, values)]
        stretches, half = [], ops.shape(queries[0])[2]
        for place, (number, begin) in enumerate(((axis.rank, missing), (2 * axis.size - 1 - axis.rank, 0))):
            held = ops.shape(keys[place])[2] + reach - begin
            k, v = (
                ops.slice(ops.concat([before[place], own[place]], 2), 2, begin, held)
                for before, own in zip(found, (keys, values), strict=True)
            )
            mask = carry.mask.at(*_places(number, half, reach - begin, 0))
            stretches.append(replace(carry, q=queries[place], k=k, v=v, mask=mask).whole(ops))
        return ops.concat(stretches, 2)


def _reach(carry: Pairs[Any]) -> Dim:
    """How many tokens away, to one side, a query sees."""
    assert carry.mask.window is not None
    return carry.mask.window - 1


def _places(number: Dim, n: Dim, before: Dim, ahead: Dim) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Where a stretch of n queries is, and the keys from so many before it to so many after it."""
    start, end = number * n, (number + 1) * n
    return ((start, end),), ((start - before, end + ahead),)


def _before(ops: Vocabulary[T], halves: tuple[T, T], reach: Dim, axis: Axis) -> tuple[T, T]:
    """The rows that go before each of a rank's two stretches; zeros where there are none."""
    early, late = (ops.slice(x, 2, ops.shape(x)[2] - reach, reach) for x in halves)
    last = 1 - minimum(axis.size - 1 - axis.rank, 1)
    after = ops.concat([ops.halo(late, 2, 0, reach, axis), early], 2)
    return ops.slice(ops.halo(early, 2, reach, 0, axis), 2, 0, reach), ops.slice(after, 2, reach * (1 + last), reach)


window_halo = WindowHalo()
window_zigzag = WindowZigzag()
