"""How much longer whole runs take than their kernels and messages say: an uncertainty that no fit of a kernel knows.

What it holds: waiting for hosts and other ranks, allocators, other versions of kernels and libraries, another card.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

#: Share of runs beyond each end of a 90 % interval.
BEYOND = 0.05


@dataclass(frozen=True)
class Missed:
    """One run against its prediction, as natural logarithms.

    Attributes:
        by: of measured over predicted seconds.
        low, high: how far the ends of the prediction's interval are from it, from the numbers of the profile alone.
    """

    source: str
    by: float
    low: float
    high: float

    def inside(self, ends: tuple[float, float]) -> bool:
        """Whether the run is in the interval widened by a composition between these factors, as independent errors."""
        faster, slower = np.log(ends)
        return -float(np.hypot(self.low, faster)) <= self.by <= float(np.hypot(self.high, slower))


def ends(runs: Sequence[Missed]) -> tuple[float, float]:
    """Between which factors composition lies, so that 5 % of runs are beyond either end; sources weigh alike.

    Each end is the least that does so: 1 where the profile's own ranges hold enough.
    """
    count = {run.source: sum(other.source == run.source for other in runs) for run in runs}
    weights = [1 / count[run.source] / len(count) for run in runs]
    faster = _least([(_needed(-run.by, run.low), weight) for run, weight in zip(runs, weights, strict=True)])
    slower = _least([(_needed(run.by, run.high), weight) for run, weight in zip(runs, weights, strict=True)])
    return float(np.exp(-faster)), float(np.exp(slower))


def held_out(runs: Sequence[Missed]) -> dict[str, tuple[tuple[float, float], int, int]]:
    """For each source: ends from the others alone, how many of its runs are then in their interval, of how many."""
    found = {}
    for source in dict.fromkeys(run.source for run in runs):
        others = ends([run for run in runs if run.source != source])
        mine = [run for run in runs if run.source == source]
        found[source] = others, sum(run.inside(others) for run in mine), len(mine)
    return found


def _needed(by: float, own: float) -> float:
    """What has to be added in squares to an interval's own end to reach a run."""
    return float(np.sqrt(by**2 - own**2)) if by > own else 0.0


def _least(needed: Iterable[tuple[float, float]]) -> float:
    """The least of the needed amounts beyond which at most ``BEYOND`` of the weight lies."""
    beyond, reached = 0.0, 0.0
    for amount, weight in sorted(needed, reverse=True):
        beyond += weight
        if beyond > BEYOND + 1e-9:
            reached = amount
            break
    return reached
