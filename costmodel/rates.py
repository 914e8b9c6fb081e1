"""A cluster's rates, as values of the symbols in time formulas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from costmodel.compiled import Array, Value
from costmodel.errors import UnknownNameError
from costmodel.hardware.cluster import Cluster
from costmodel.hardware.quantity import Quantity
from costmodel.workload import WIDTHS

#: Where in its range each rate is taken: at its value, or where everything is fast, or slow.
Bound = Literal["value", "fast", "slow"]

#: Symbols of rates that are one number for a whole cluster.
SCALARS = ("launch", "step", "matrix", "vector", "special", "memory")


def is_scalar(symbol: str) -> bool:
    """Whether a symbol is a rate of the device, the same for every candidate."""
    return symbol.split(":", maxsplit=1)[0] in SCALARS


class Rates:
    """Looks up rates of a cluster at one bound of their ranges.

    Raises:
        UnknownNameError: for a dtype that the device has no dense rate for.
    """

    def __init__(self, cluster: Cluster, dtype: str, bound: Bound = "value") -> None:
        self.cluster, self.dtype, self.bound = cluster, dtype, bound
        if f"{dtype}_dense" not in cluster.profile.device.peak_flop_per_s:
            held = [name for name in WIDTHS if f"{name}_dense" in cluster.profile.device.peak_flop_per_s]
            raise UnknownNameError(f"dtype of {cluster.profile.name}", dtype, held)

    def device(self, symbols: Iterable[str]) -> dict[str, Value]:
        """Values of the device's rates among some symbols."""
        return {symbol: self._device_rate(*symbol.split(":")) for symbol in symbols if is_scalar(symbol)}

    def links(self, symbols: Iterable[str], sizes: dict[str, Array], strides: dict[str, Array]) -> dict[str, Value]:
        """Latencies and seconds per byte among some symbols, for candidates with these axes."""
        found: dict[str, Value] = {}
        for symbol in symbols:
            kind, *where = symbol.split(":")
            if kind == "latency":
                found[symbol] = self.cluster.link_arrays("ring_shift", sizes[where[0]], strides[where[0]])[0]
            elif kind == "seconds_per_byte":
                _, value, low, high = self.cluster.link_arrays(where[1], sizes[where[0]], strides[where[0]])
                found[symbol] = 1 / {"value": value, "fast": high, "slow": low}[self.bound]
        return found

    def _device_rate(self, kind: str, family: str = "") -> float:
        device = self.cluster.profile.device
        if kind == "launch":
            return self._taken(device.launch_s, less_is_fast=True)
        if kind == "step":
            return self._taken(device.step_s, less_is_fast=True)
        kernel = device.kernels.taken(family)
        if kind == "memory":
            return self._taken(device.memory_bytes_per_s) * self._taken(kernel.memory)
        peak = {
            "matrix": device.peak_flop_per_s[f"{self.dtype}_dense"],
            "vector": device.vector_flop_per_s,
            "special": device.special_op_per_s,
        }[kind]
        return self._taken(peak) * (self._taken(kernel.compute) if kind != "special" else 1.0)

    def _taken(self, quantity: Quantity, less_is_fast: bool = False) -> float:
        if self.bound == "value":
            return quantity.value
        return quantity.lo if (self.bound == "fast") == less_is_fast else quantity.hi


def usable_memory(cluster: Cluster) -> float:
    """Bytes of one device's memory that are left for tensors."""
    device = cluster.profile.device
    return device.memory_bytes.value - device.reserved_bytes.value


def strides(sizes: dict[str, Array], order: Iterable[str]) -> dict[str, Array]:
    """How far apart in rank order the members of each axis are; ``order`` is innermost first."""
    found: dict[str, Array] = {}
    inside = np.ones_like(next(iter(sizes.values())))
    for name in order:
        found[name] = inside
        inside = inside * sizes[name]
    return found
