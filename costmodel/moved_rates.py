"""Rates of a cluster with every uncertain number of its profile moved in turn, each looked up once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property, lru_cache

import numpy as np

from costmodel.candidates import factorisations
from costmodel.compiled import Array, Value
from costmodel.hardware.cluster import Cluster
from costmodel.rates import Rates
from costmodel.uncertainty import Uncertainty


class MovedRates:
    """Values of rates, with an entry for each profile of ``Uncertainty.moved``."""

    def __init__(self, cluster: Cluster, dtype: str) -> None:
        self.uncertainty, self._devices = Uncertainty.of(cluster.profile), cluster.devices
        self._moved = [
            (key, Rates(Cluster(profile, cluster.devices), dtype)) for key, profile in self.uncertainty.moved
        ]
        self.device = cache(self._device)
        self._table = cache(self._at_every_span)

    def link(self, symbol: str, size: int, stride: int) -> Array:
        """A rate of the link that an axis communicates over, of that size and with members so far apart."""
        kind, _, *collective = symbol.split(":")
        column: Array = self._table(":".join((kind, "", *collective)))[:, self._places[size, stride]]
        return column

    def _device(self, symbol: str) -> Array:
        return self._each("device", lambda rates: rates.device([symbol])[symbol])

    def _at_every_span(self, symbol: str) -> Array:
        """A link's rate for every span, [profiles, spans]."""
        sizes, strides = (np.array(part, np.float64) for part in zip(*self._places, strict=True))
        return self._each("links", lambda rates: rates.links([symbol], {"": sizes}, {"": strides})[symbol])

    def _each(self, part: str, rate: Callable[[Rates], Value]) -> Array:
        """A rate that only numbers of that part of a profile have to do with."""
        plain = rate(self._moved[0][1])
        return np.array([rate(rates) if key.startswith(part) else plain for key, rates in self._moved])

    @cached_property
    def _places(self) -> dict[tuple[int, int], int]:
        """Sizes of an axis and distances between its members, of every mesh, numbered."""
        inside = factorisations(self._devices, 3)  # an axis, what is inside it and what is outside
        return {(int(size), int(stride)): place for place, (size, stride, _) in enumerate(inside)}


@lru_cache(maxsize=8)
def moved_rates(cluster: Cluster, dtype: str) -> MovedRates:
    """Those of a cluster, for all questions about it."""
    return MovedRates(cluster, dtype)
