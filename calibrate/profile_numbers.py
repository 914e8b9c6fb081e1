"""Numbers of a profile by their keys: their values, ranges and limits, and where a fit starts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from costmodel.hardware.profile import Profile, look_up, placed
from costmodel.hardware.quantity import ALLOWED, Quantity

#: Half a 90 % interval of a normal distribution, in standard deviations.
HALF_90 = 1.6449

#: What a profile says of a number that it did not have and the measurements do not tell.
START = "where the fit starts, of the usual size; the measured runs do not say it"

#: Where numbers that a profile does not have start; a term that is left out is as if it were not there.
STARTS = {
    "exposed": 0.2,
    "ramp": 100.0,
    "uneven": 0.05,
    "launch_s": 4e-6,
    "cache_bytes": 30e6,
    "start_s": 8e-6,
    "own_bytes_per_s": 8e11,
    "small_latency_s": 1.5e-6,
    "small_cost": 2.0,
}


def values(profile: Profile, keys: Iterable[str]) -> dict[str, float]:
    """Numbers at some keys, of those that the profile has."""
    quantities = {key: look_up(profile, key) for key in keys}
    return {key: quantity.value for key, quantity in quantities.items() if isinstance(quantity, Quantity)}


def variances_of_ranges(profile: Profile, keys: Iterable[str]) -> NDArray[np.float64]:
    """Variances of logarithms of numbers, of which the range is taken for a 90 % interval."""
    found = [quantity for quantity in (look_up(profile, key) for key in keys) if isinstance(quantity, Quantity)]
    halves = np.array([np.log(quantity.hi / quantity.lo) / 2 for quantity in found])
    return np.square(halves / HALF_90)


def started(profile: Profile, keys: Iterable[str]) -> Profile:
    """The profile with a number at each key: its own where it has one."""
    for key in keys:
        if look_up(profile, key) is None:
            name = key.rpartition(".")[2]
            value = STARTS.get(name)
            if name == "cache_bytes_per_s":  # faster than memory, or it would change nothing
                value = 2 * profile.device.memory_bytes_per_s.value
            if value is None:  # of a collective: as the link's; of all devices together: as of two
                rate = values(profile, ["links[0].bytes_per_s"])["links[0].bytes_per_s"]
                number = Quantity(rate * (2 if name == "shared_bytes_per_s" else 1), START, "assumed")
            else:
                number = Quantity(value, START, "assumed", low=value / 2, high=value * 2)
            profile = placed(profile, {key: number})
    return profile


def limits(profile: Profile, key: str) -> tuple[float, float]:
    """Between what a number may lie; a link's rates below its line rate, or twice that for a sum in the switch."""
    name = key.rpartition(".")[2]
    allowed = ALLOWED[name]
    if key.startswith("links") and (name in ("bytes_per_s", "switch_bytes_per_s") or ".collectives." in key):
        line = values(profile, ["links[0].peak_bytes_per_s"])["links[0].peak_bytes_per_s"]
        return allowed.low, line * (2 if name == "all_reduce" else 1)
    return allowed.low, allowed.high
