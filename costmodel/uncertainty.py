"""How uncertain a prediction is, from the ranges and correlations of the numbers it uses.

Each uncertain number of a profile is moved to either end of its range, which is taken for a 90 % interval, and the
prediction made again. Changes add up by the law of propagation of uncertainty, on a logarithmic scale (JCGM 100:2008,
equation 13): those of numbers fitted together with their correlation, all others as independent. So does what whole
runs take longer or shorter than their kernels say (``Profile.composition``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np

from costmodel.compiled import Array
from costmodel.hardware.profile import Profile, look_up, placed
from costmodel.hardware.provenance import numbers
from costmodel.hardware.quantity import Quantity

#: Numbers that no time depends on.
WITHOUT_TIME = ("memory_bytes", "reserved_bytes", "peak_bytes_per_s")

#: Parts of a profile that no rate is in.
APART = ("host", "composition")


@dataclass(frozen=True)
class Uncertainty:
    """The uncertain numbers of a profile.

    Attributes:
        keys: where they stand.
    """

    profile: Profile
    keys: tuple[str, ...]

    @classmethod
    def of(cls, profile: Profile) -> Uncertainty:
        """All numbers of a profile that have a range and that times depend on."""
        found = [
            key
            for key, quantity in numbers(profile)
            if quantity.lo < quantity.hi and not key.startswith(APART) and key.rpartition(".")[2] not in WITHOUT_TIME
        ]
        return cls(profile, tuple(found))

    @cached_property
    def moved(self) -> list[tuple[str, Profile]]:
        """The profile itself, then for each number with it at its low and at its high end."""
        quantities = dict(numbers(self.profile))
        found = [("", self.profile)]
        for key in self.keys:
            found += [(key, moved(self.profile, {key: end})) for end in (quantities[key].lo, quantities[key].hi)]
        return found

    @cached_property
    def _together(self) -> list[tuple[list[int], Array]]:
        """Numbers that were fitted together, and the correlation of their errors."""
        place = {key: number for number, key in enumerate(self.keys)}
        blocks = []
        for correlation in self.profile.correlations:
            held = [number for number, key in enumerate(correlation.of) if key in place]
            matrix = np.array(correlation.matrix)[np.ix_(held, held)]
            blocks.append(([place[correlation.of[number]] for number in held], matrix))
        return blocks

    def interval(
        self, seconds: Array, times: Sequence[Quantity] = (), over: Sequence[Quantity] = ()
    ) -> tuple[float, float]:
        """The 90 % interval of a prediction that was made with each profile of ``moved``, in this order.

        Args:
            times, over: factors of about 1 and independent of all else, which the prediction is to be multiplied with
                and divided by.
        """
        change = np.log(seconds[1:] / seconds[0]).reshape(-1, 2)
        slow = np.square(np.maximum(change.max(axis=1), 0))
        fast = np.square(np.minimum(change.min(axis=1), 0))
        both = 0.0
        for places, matrix in self._together:
            halves = (change[places, 1] - change[places, 0]) / 2
            both += float(halves @ matrix @ halves)
            slow[places] = fast[places] = 0
        factors = [(factor.lo, factor.hi) for factor in times] + [(1 / factor.hi, 1 / factor.lo) for factor in over]
        less, more = (sum(np.square(np.log(ends))) for ends in zip((1.0, 1.0), *factors, strict=True))
        low, high = np.sqrt(fast.sum() + max(both, 0.0) + less), np.sqrt(slow.sum() + max(both, 0.0) + more)
        return float(seconds[0] * np.exp(-low)), float(seconds[0] * np.exp(high))


def moved(profile: Profile, to: Mapping[str, float]) -> Profile:
    """The profile with some numbers at other values; their ranges are widened to hold them.

    Raises:
        InputError: for a value that the number may not have.
    """
    found: dict[str, Quantity | None] = {}
    for key, value in to.items():
        held = look_up(profile, key)
        if isinstance(held, Quantity):
            low, high = min(held.lo, value), max(held.hi, value)
            found[key] = msgspec.structs.replace(held, value=value, low=low, high=high)
    return placed(profile, found)
