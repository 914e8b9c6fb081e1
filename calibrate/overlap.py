"""What computation beside communication really takes: the ``contention`` of a link.

Both started together take as long as the longer of the communication and the computation that it slows
(``costmodel.timing.Times.beside``), so that each pair that was measured alone and together says by which part of the
communication's time the computation is slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibrate.store import Beside, Contents
from costmodel.hardware.quantity import ALLOWED, Quantity

#: Of what pairs say, the middle and the ends of the range.
PARTS = (0.05, 0.5, 0.95)


def contention(pair: Beside) -> float | None:
    """Part of its time by which communication delays computation; ``None`` where the communication hides that.

    From 0 to 1: pairs that take longer together than one after the other are as if one after the other.
    """
    if pair.both_s <= pair.communication_s and pair.computation_s < pair.communication_s:
        return None
    return float(np.clip((pair.both_s - pair.computation_s) / pair.communication_s, 0.0, ALLOWED["contention"].high))


def told(pairs: Sequence[Beside]) -> list[float]:
    """What each pair says, of those that say anything."""
    return [part for part in map(contention, pairs) if part is not None]


def overlap_numbers(found: Contents) -> dict[str, Quantity]:
    """What a profile says of computation beside communication, of the pairs of a file; nothing without pairs."""
    every = told(found.overlaps)
    if not every:
        return {}
    environment = found.environments[found.overlaps[-1].environment]
    low, value, high = (round(float(part), 3) for part in np.quantile(every, PARTS))
    kinds = len({pair.what for pair in found.overlaps})
    source = (
        f"median of {len(every)} messages of {kinds} kind{'s' * (kinds > 1)} beside matrix products, "
        f"range: nine in ten; {environment.device}, {environment.date[:10]}"
    )
    return {"links[0].contention": Quantity(value, source, "measured", low=low, high=high)}
