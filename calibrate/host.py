"""What a device's host does: copies to and from its memory, and launches of kernels.

A copy takes a start and its bytes at a rate, which is a profile's for memory that is pinned, as what offloads has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from calibrate.additive import costs, predicted
from calibrate.store import Contents, Copied, Way
from costmodel.hardware.quantity import Quantity

#: Of one copy, coarse to fine.
BYTES = (2**10, 2**28, 2**20, 2**24, 2**14, 2**22, 2**26, 2**18, 2**12, 2**16)

#: Why a CPU has none.
NONE_ON_CPU = "copies to and from the host: a CPU's memory is the host's"


@dataclass(frozen=True)
class HostCopy:
    """One copy at one size; see ``calibrate.store.Copied``."""

    way: Way
    pinned: bool
    bytes: int


def host_copies() -> Iterator[HostCopy]:
    """Every way, pinned and pageable, all of them at one size before the next; both ways at once pinned only."""
    for size in BYTES:
        for way in get_args(Way):
            for pinned in (True, False) if way != "both ways" else (True,):
                yield HostCopy(way, pinned, size)


@dataclass(frozen=True)
class Path:
    """What copies of one kind take.

    Attributes:
        start_s: of one that moves nothing.
        bytes_per_s: one way, while the other runs as well for both ways.
        error: median relative error of the copies.
    """

    way: Way
    pinned: bool
    start_s: float
    bytes_per_s: float
    error: float


def paths(copies: Sequence[Copied]) -> list[Path]:
    """Each kind of copy that enough sizes were measured of, by least squares of relative errors."""
    fastest: dict[tuple[Way, bool], dict[int, float]] = {}
    for copy in copies:
        sizes = fastest.setdefault((copy.way, copy.pinned), {})
        sizes[copy.bytes] = min(copy.timing.seconds, sizes.get(copy.bytes, np.inf))
    found = []
    for (way, pinned), sizes in fastest.items():
        each = [{"start": 1.0, "byte": float(size)} for size in sizes]
        seconds = np.array(list(sizes.values()))
        cost = costs(each, seconds)
        if len(sizes) > 1 and "byte" in cost:
            error = float(np.median(np.abs(predicted(each, cost) / seconds - 1)))
            found.append(Path(way, pinned, cost.get("start", 0.0), 1 / cost["byte"], error))
    return found


def host_numbers(found: Contents) -> dict[str, Quantity]:
    """What a profile says of the host, of the copies and launches of a file."""
    return {**_rate(found), **_launch(found)}


def _launch(found: Contents) -> dict[str, Quantity]:
    """Of a kernel, as was last measured; nothing without launches."""
    if not found.launches:
        return {}
    (*_, last) = found.launches
    environment = found.environments[last.environment]
    source = f"the smallest kernel handed over again and again, {environment.device}, {environment.date[:10]}"
    ends = np.quantile(last.timing.samples, (0.05, 0.95))
    value, low, high = (float(f"{x:.4g}") for x in (last.timing.seconds, *ends))
    return {"device.host_launch_s": Quantity(value, source, "measured", low=min(low, value), high=max(high, value))}


def _rate(found: Contents) -> dict[str, Quantity]:
    """Of the host's memory; nothing without copies of pinned memory."""
    rates = {path.way: path.bytes_per_s for path in paths(found.copies) if path.pinned}
    alone = [rates[way] for way in get_args(Way)[:2] if way in rates]
    if not alone:
        return {}
    environment = found.environments[found.copies[-1].environment]
    told = ", ".join(f"{way} {rate / 1e9:.1f} GB/s" for way, rate in rates.items())
    source = f"copies of pinned memory, least squares: {told}; {environment.device}, {environment.date[:10]}"
    there_and_back = len(alone) / sum(1 / rate for rate in alone)
    value, low, high = (float(f"{x:.4g}") for x in (there_and_back, min(rates.values()), max(alone)))
    return {"host.bytes_per_s": Quantity(value, source, "measured", low=low, high=high)}
