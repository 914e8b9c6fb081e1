"""A cluster's rates, as values of the symbols in time formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from costmodel.compiled import Array, Value
from costmodel.errors import UnknownNameError
from costmodel.hardware.cluster import Cluster, Ints
from costmodel.hardware.profile import Device, Kernel, Link, Profile
from costmodel.hardware.quantity import Quantity
from costmodel.timing import IN_TURN
from costmodel.workload import WIDTHS

#: Symbols of rates that are one number for a whole cluster.
SCALARS = (
    "launch", "step", "matrix", "vector", "special", "memory", "exposed", "ramp", "uneven", "fill", "cache", "saved",
    "filled", "kept", "line", "left", "right", "apart", "result", "again", "scores", "between", "far", "host",
)  # fmt: skip

#: Numbers of a kernel family that a profile may leave out, which are then 0.
TERMS = ("exposed", "ramp", "uneven", "fill")

#: Symbols of seconds of a kernel that are not an overhead's.
TIMES = ("launch", "kept", "saved")

#: What is besides FLOP and traffic, and the number that says its seconds, or how many of it are done in a second.
OVERHEADS = {
    "line": "line_s",
    "left": "left_bytes_per_s",
    "right": "right_bytes_per_s",
    "apart": "apart_bytes_per_s",
    "result": "result_bytes_per_s",
    "again": "again_bytes_per_s",
    "scores": "scores_per_s",
    "between": "between_bytes_per_s",
    "far": "far_s",
}

#: Those numbers of them that are seconds.
SECONDS = ("line_s", "far_s")

#: Symbols of rates of a link, which depend on the ranks that communicate.
LINKS = ("start", "latency", "tree", "sooner", "dearer", "own", "switched", "contention", "seconds_per_byte")

#: Those of them that are no times.
FACTORS = ("dearer", "contention")


def is_scalar(symbol: str) -> bool:
    """Whether a symbol is a rate of the device, the same for every candidate."""
    return symbol.split(":", maxsplit=1)[0] in SCALARS


def is_link_rate(symbol: str) -> bool:
    """Whether a symbol is a rate of the link that an axis communicates over."""
    return symbol.split(":", maxsplit=1)[0] in LINKS


def axis_of(symbol: str) -> str:
    """The axis of a link's rate."""
    return symbol.split(":")[1]


def of_any_axis(symbol: str) -> str:
    """A link's rate without its axis."""
    kind, _, *collective = symbol.split(":")
    return ":".join((kind, "", *collective))


class Rates:
    """Looks up rates of a cluster.

    Raises:
        UnknownNameError: for a dtype that the device has no dense rate for.
    """

    def __init__(self, cluster: Cluster, dtype: str) -> None:
        self.cluster, self.dtype = cluster, dtype
        if f"{dtype}_dense" not in cluster.profile.device.peak_flop_per_s:
            held = [name for name in WIDTHS if f"{name}_dense" in cluster.profile.device.peak_flop_per_s]
            raise UnknownNameError(f"dtype of {cluster.profile.name}", dtype, held)

    def device(self, symbols: Iterable[str]) -> dict[str, Value]:
        """Values of the device's rates among some symbols."""
        device = self.cluster.profile.device
        return {symbol: _device_rate(device, self.dtype, symbol) for symbol in symbols if is_scalar(symbol)}

    def links(self, symbols: Iterable[str], sizes: dict[str, Array], strides: dict[str, Array]) -> dict[str, Value]:
        """Rates of links among some symbols, for candidates with these axes."""
        found: dict[str, Value] = {}
        levels: dict[str, Ints] = {}
        for symbol in symbols:
            if not is_link_rate(symbol):
                continue
            kind, axis, *where = symbol.split(":")
            size, stride = sizes[axis], strides[axis]
            if axis not in levels:
                levels[axis] = self.cluster.level_of(size, stride)
            spread = self._at(levels[axis], _spread)
            if kind == "seconds_per_byte":
                found[symbol] = spread / self.cluster.bandwidth(where[0], size, stride)
            elif kind == "latency":
                found[symbol] = np.where(size == 1, 0.0, self.cluster.latency(where[0], size, stride) * spread)
            elif kind == "tree":
                found[symbol] = self.cluster.tree_latency(size, stride) * spread
            else:
                number = self._at(levels[axis], _NUMBERS[kind])
                # A rank alone starts no collective and copies nothing.
                found[symbol] = np.where(size == 1, 0.0, number if kind in FACTORS else number * spread)
        return found

    def _at(self, level: Ints, number: _LinkNumber) -> Array:
        """A number of the links of those levels."""
        return np.array([number(link) for link in self.cluster.profile.links] or [0.0])[level]


def _value(quantity: Quantity | None, otherwise: float) -> float:
    return otherwise if quantity is None else quantity.value


def _spread(noun: Kernel | Link) -> float:
    return _value(noun.spread, 1.0)


_LinkNumber = Callable[[Link], float]
_NUMBERS: dict[str, _LinkNumber] = {
    "start": lambda link: _value(link.start_s, 0.0),
    "sooner": lambda link: link.latency_s.value - _value(link.small_latency_s, link.latency_s.value),
    "dearer": lambda link: _value(link.small_cost, 1.0) - 1,
    "own": lambda link: 1 / link.own_bytes_per_s.value if link.own_bytes_per_s else 0.0,
    "contention": lambda link: _value(link.contention, 0.0),
    "switched": lambda link: 1 / _value(link.switch_bytes_per_s, 1.0),  # without one, slower than any ring
}


def _kernel(device: Device, where: str) -> Kernel:
    """Numbers of a kernel by ``family:name``, or by its family alone."""
    family, _, name = where.partition(":")
    return device.kernel(family, name)


def _device_rate(device: Device, dtype: str, symbol: str) -> float:
    kind, _, where = symbol.partition(":")
    if kind in ("cache", "filled"):
        held = _value(device.cache_bytes, 0.0)
        return held if kind == "cache" or not held else 1 / held
    if kind == "host":
        return _value(device.host_launch_s, 0.0)
    kernel = _kernel(device, where)
    if kind in TERMS:
        return _value(getattr(kernel, kind), 0.0)
    if kind == "step":
        return _value(kernel.line_s, device.step_s.value)
    if kind in TIMES or kind in OVERHEADS:
        return _time(device, kernel, kind) * _spread(kernel)
    return _rate(device, kernel, dtype, symbol) / _spread(kernel)


def _time(device: Device, kernel: Kernel, kind: str) -> float:
    """Seconds of a launch, of a line, or of a byte: that a cache saves, or that is moved besides."""
    if kind == "launch":
        return _value(kernel.launch_s, device.launch_s.value)
    if kind in OVERHEADS:
        return _overhead(kernel, kind)
    bandwidth = device.memory_bytes_per_s.value * kernel.memory.value
    if kind == "kept":
        return (1 - 1 / _value(kernel.cached, 1.0)) / bandwidth
    faster = bandwidth if kernel.cached else _value(device.cache_bytes_per_s, bandwidth)
    return max(0.0, 1 / bandwidth - 1 / faster)


def _rate(device: Device, kernel: Kernel, dtype: str, symbol: str) -> float:
    """Bytes, FLOP or special functions in a second."""
    kind, _, where = symbol.partition(":")
    family, _, name = where.partition(":")
    if kind == "memory":
        return device.memory_bytes_per_s.value * kernel.memory.value
    if kind == "matrix":
        return _matrix_rate(device, kernel, dtype)
    if kernel.scores_per_s is not None:  # which is all that is not products
        return math.inf
    waits = family in IN_TURN and kernel.exposed is not None
    plain = device.kernels.elementwise if waits else kernel  # what waits for products runs as if alone
    vector = device.vector_flop_per_s.value * plain.compute.value
    return vector if kind == "vector" or name in device.single else device.special_op_per_s.value


def _overhead(kernel: Kernel, kind: str) -> float:
    number: Quantity | None = getattr(kernel, OVERHEADS[kind])
    if number is None:
        return 0.0
    return number.value if OVERHEADS[kind] in SECONDS else 1 / number.value


def _matrix_rate(device: Device, kernel: Kernel, dtype: str) -> float:
    own = kernel.flop_per_s
    if own is not None and f"{dtype}_dense" in own:
        return own[f"{dtype}_dense"].value
    return device.peak(dtype).value * kernel.compute.value


def absent(profile: Profile, symbols: Iterable[str]) -> frozenset[str]:
    """Rates among some symbols that are 0 as the profile says nothing of them, and stay so if its numbers move."""
    device = profile.device
    known: dict[str, Callable[[str], bool]] = {
        **{term: partial(_has_term, device, term) for term in TERMS},
        **{name: partial(_has_term, device, number) for name, number in OVERHEADS.items()},
        "kept": partial(_has_term, device, "cached"),
        "filled": lambda _: device.cache_bytes is not None,
        "cache": lambda _: device.cache_bytes is not None,
        "host": lambda _: device.host_launch_s is not None,
        "saved": lambda _: device.cache_bytes_per_s is not None,
        "start": lambda _: any(link.start_s for link in profile.links),
        "sooner": lambda _: any(link.small_latency_s for link in profile.links),
        "own": lambda _: any(link.own_bytes_per_s for link in profile.links),
        "dearer": lambda _: any(link.small_cost for link in profile.links),
        "contention": lambda _: any(link.contention for link in profile.links),
    }
    parts = ((symbol, *symbol.partition(":")) for symbol in symbols)
    return frozenset(symbol for symbol, kind, _, where in parts if kind in known and not known[kind](where))


def _has_term(device: Device, term: str, where: str) -> bool:
    return getattr(_kernel(device, where), term) is not None


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
