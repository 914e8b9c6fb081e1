"""A number with its unit, its source and the range its sources support."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec

from costmodel.errors import InputError

Kind = Literal["datasheet", "cited", "measured", "derived", "assumed"]


class Quantity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number of a hardware profile, in the SI base unit that its key names.

    ``kind`` says how the number is known: ``datasheet`` (the maker's figure), ``cited`` (measured by the
    source named), ``measured`` (by whoever wrote the profile), ``derived`` (arithmetic on others, given in
    ``source``) or ``assumed`` (no measurement found; ``source`` says from which proxy). ``low`` and ``high``
    enclose what the sources support; without them the range is the value itself.

    Raises `InputError` for a number that is negative or not finite, a range that does not contain the value,
    or an empty source.

    >>> Quantity(18e9, "nccl issue 1603", "cited", low=16e9).lo
    16000000000.0
    """

    value: float
    source: str
    kind: Kind
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for key, number in (("value", self.value), ("low", self.lo), ("high", self.hi)):
            if not math.isfinite(number):
                raise InputError(key, number, "must be a finite number")
            if number < 0:
                raise InputError(key, Plain(f"{number:g}"), "must be > 0")
        if self.lo > self.value:
            raise InputError("low", self.low, f"must be at most the value, {self.value:g}")
        if self.hi < self.value:
            raise InputError("high", self.high, f"must be at least the value, {self.value:g}")
        if not self.source.strip():
            raise InputError("source", self.source, "must say where the number is from", "cite a document")

    @property
    def lo(self) -> float:
        """Lower end of the range, in the unit of ``value``."""
        return self.value if self.low is None else self.low

    @property
    def hi(self) -> float:
        """Upper end of the range, in the unit of ``value``."""
        return self.value if self.high is None else self.high


class Plain:
    """A value that error messages show as it is, without quotes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Allowed:
    """Unit of a key and the decades in which a plausible number lies (ends included)."""

    unit: str
    low: float
    high: float
    example: str
    zero: bool = False

    def fault(self, number: float) -> str | None:
        """What is wrong with ``number``, or None if it may stand."""
        if (number == 0 and self.zero) or self.low <= number <= self.high:
            return None
        if number == 0:
            return "must be > 0"
        also = "0, or " if self.zero else ""
        return f"must be {also}{self.low:g} to {self.high:g} {self.unit}"


_RATE = Allowed("FLOP/s", 1e8, 1e17, "165.2e12")
_LINK_RATE = Allowed("bytes/s", 1e6, 1e14, "18e9")

ALLOWED: dict[str, Allowed] = {
    # Decades wide enough for anything between a single-board computer and a rack-scale accelerator, narrow
    # enough that a number given in another unit (80 for 80e9 bytes, 3350 for 3.35e12 bytes/s, microseconds
    # for seconds) falls outside.
    "memory_bytes": Allowed("bytes", 1e7, 1e15, "80e9"),
    "memory_bytes_per_s": Allowed("bytes/s", 1e8, 1e14, "3.35e12"),
    "reserved_bytes": Allowed("bytes", 1e3, 1e12, "800e6", zero=True),
    "bf16_dense": _RATE,
    "fp16_dense": _RATE,
    "fp8_dense": _RATE,
    "fp32_dense": _RATE,
    "tf32_dense": _RATE,
    "float64_dense": _RATE,
    "vector_flop_per_s": _RATE,
    "special_op_per_s": Allowed("operations/s", 1e6, 1e16, "5e12"),
    "launch_s": Allowed("seconds", 1e-9, 1e-2, "5e-6", zero=True),
    "host_launch_s": Allowed("seconds", 1e-8, 1e-2, "5e-6", zero=True),
    "step_s": Allowed("seconds", 1e-9, 1e-2, "1e-6", zero=True),
    "latency_s": Allowed("seconds", 1e-9, 1e-1, "10e-6", zero=True),
    "bytes_per_s": _LINK_RATE,
    "peak_bytes_per_s": _LINK_RATE,
    "shared_bytes_per_s": _LINK_RATE,
    "uplink_bytes_per_s": _LINK_RATE,
    "all_to_all": _LINK_RATE,
    "ring_shift": _LINK_RATE,
    "all_gather": _LINK_RATE,
    "reduce_scatter": _LINK_RATE,
    "all_reduce": _LINK_RATE,
    # Fractions. Compute may pass 1: cards boost above the clock that the datasheet peak is stated for.
    "compute": Allowed("of the dense peak", 1e-4, 1.3, "0.85"),
    "memory": Allowed("of the memory bandwidth", 1e-4, 1.0, "0.9"),
    "exposed": Allowed("of the shorter side", 1e-6, 3.0, "0.3", zero=True),
    "ramp": Allowed("keys", 1e-3, 1e5, "180", zero=True),
    "fill": Allowed("tiles", 1.0, 1e5, "132"),
    "uneven": Allowed("of the time", 1e-6, 1.0, "0.05", zero=True),
    "layer": Allowed("times as long", 0.1, 10.0, "1.0"),
    "model": Allowed("times as long", 0.1, 10.0, "1.0"),
    "cached": Allowed("times as fast", 1.0, 1e3, "2.5"),
    "line_s": Allowed("seconds", 1e-12, 1e-1, "2e-8", zero=True),
    "left_bytes_per_s": Allowed("bytes/s", 1e8, 1e15, "8e9"),
    "right_bytes_per_s": Allowed("bytes/s", 1e8, 1e15, "20e9"),
    "apart_bytes_per_s": Allowed("bytes/s", 1e8, 1e15, "20e9"),
    "result_bytes_per_s": Allowed("bytes/s", 1e8, 1e15, "20e9"),
    "again_bytes_per_s": Allowed("bytes/s", 1e8, 1e15, "20e9"),
    "scores_per_s": Allowed("scores/s", 1e6, 1e16, "1.5e9"),
    "between_bytes_per_s": Allowed("bytes/s", 1e8, 1e15, "10e9"),
    "far_s": Allowed("seconds", 1e-12, 1e-1, "5e-8", zero=True),
    "spread": Allowed("times as long", 0.1, 10.0, "1.0"),
    "cache_bytes": Allowed("bytes", 1e4, 1e12, "50e6"),
    "cache_bytes_per_s": Allowed("bytes/s", 1e8, 1e15, "4e12"),
    "start_s": Allowed("seconds", 1e-9, 1e-1, "8e-6", zero=True),
    "small_latency_s": Allowed("seconds", 1e-9, 1e-1, "1e-6", zero=True),
    "own_bytes_per_s": _LINK_RATE,
    "switch_bytes_per_s": _LINK_RATE,
    "contention": Allowed("of the time sent", 1e-6, 1.0, "0.45", zero=True),
    "small_cost": Allowed("times the bytes", 1.0, 100.0, "2.0"),
}
"""Unit and plausible range of every key that holds a `Quantity`."""
