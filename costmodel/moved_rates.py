"""Rates of a cluster, each looked up once, and with every uncertain number of its profile moved in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costmodel.candidates import factorisations
from costmodel.compiled import Array, Value
from costmodel.hardware.cluster import Cluster
from costmodel.rates import Rates, axis_of, is_link_rate, of_any_axis
from costmodel.uncertainty import Uncertainty


class Spans:
    """Sizes of an axis and distances between its members, of every mesh of so many devices, numbered."""

    def __init__(self, devices: int) -> None:
        inside = factorisations(devices, 3)  # an axis, what is inside it and what is outside
        self.sizes, self.strides = inside[:, 0].astype(np.float64), inside[:, 1].astype(np.float64)
        self._many = devices + 1
        self._keys = self.sizes * self._many + self.strides

    def places(self, size: ArrayLike, stride: ArrayLike) -> NDArray[np.int64]:
        """The numbers of some.

        Raises:
            ValueError: for one of no such mesh.
        """
        asked = np.asarray(size) * self._many + stride
        found = np.searchsorted(self._keys, asked)
        if not np.array_equal(self._keys.take(found, mode="clip"), asked):
            raise ValueError(f"not every axis is one of a mesh of {self._many - 1} devices")
        return found


class KnownRates:
    """Values of rates, for a workload's dtype."""

    def __init__(self, cluster: Cluster, dtype: str) -> None:
        self._rates, self._spans = Rates(cluster, dtype), Spans(cluster.devices)
        self.device = cache(self._device)
        self._columns = cache(self._at_every_span)

    def links(self, symbols: Iterable[str], spans: tuple[Mapping[str, Array], Mapping[str, Array]]) -> dict[str, Array]:
        """Rates of links among some symbols, for candidates with axes of such sizes and strides."""
        sizes, strides = spans
        asked = [name for name in symbols if is_link_rate(name)]
        places = {axis: self._spans.places(sizes[axis], strides[axis]) for axis in set(map(axis_of, asked))}
        return {name: self._columns(of_any_axis(name))[places[axis_of(name)]] for name in asked}

    def _device(self, symbol: str) -> Value:
        return self._rates.device([symbol])[symbol]

    def _at_every_span(self, symbol: str) -> Array:
        return np.asarray(self._rates.links([symbol], {"": self._spans.sizes}, {"": self._spans.strides})[symbol])


class MovedRates:
    """Values of rates, with an entry for each profile of ``Uncertainty.moved``."""

    def __init__(self, cluster: Cluster, dtype: str) -> None:
        self.uncertainty, self._spans = Uncertainty.of(cluster.profile), Spans(cluster.devices)
        self._moved = [
            (key, Rates(Cluster(profile, cluster.devices), dtype)) for key, profile in self.uncertainty.moved
        ]
        self.device = cache(self._device)
        self._table = cache(self._at_every_span)

    def link(self, symbol: str, size: int, stride: int) -> Array:
        """A rate of the link that an axis communicates over, of that size and with members so far apart."""
        column: Array = self._table(of_any_axis(symbol))[:, self._spans.places(size, stride)]
        return column

    def _device(self, symbol: str) -> Array:
        return self._each("device", lambda rates: rates.device([symbol])[symbol])

    def _at_every_span(self, symbol: str) -> Array:
        """A link's rate for every span, [profiles, spans]."""
        spans = {"": self._spans.sizes}, {"": self._spans.strides}
        return self._each("links", lambda rates: rates.links([symbol], *spans)[symbol])

    def _each(self, part: str, rate: Callable[[Rates], Value]) -> Array:
        """A rate that only numbers of that part of a profile have to do with."""
        plain = rate(self._moved[0][1])
        return np.array([rate(rates) if key.startswith(part) else plain for key, rates in self._moved])


@lru_cache(maxsize=8)
def known_rates(cluster: Cluster, dtype: str) -> KnownRates:
    """Those of a cluster, for all questions about it."""
    return KnownRates(cluster, dtype)


@lru_cache(maxsize=8)
def moved_rates(cluster: Cluster, dtype: str) -> MovedRates:
    """Those of a cluster, for all questions about it."""
    return MovedRates(cluster, dtype)
