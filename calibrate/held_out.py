"""How well a fit predicts what it has not seen: shapes left out, sources left out, and runs kept for checking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from calibrate.fit import FOLDS, fit_keys, fold
from calibrate.fitted import Fit, Variances
from calibrate.measurement import Measurement
from calibrate.predictor import Floats, Predictor, slopes
from calibrate.profile_numbers import HALF_90
from costmodel.hardware.profile import Profile

#: Runs of sources left out that it takes to say how wide an interval must be: the tenth outside is two runs.
ENOUGH = 20


#: A run depends on a number whose change by 1 % changes its time by a tenth of that.
NEEDED = 0.1

#: Where the fitted numbers alone leave a larger standard deviation of a time's logarithm, a fit does not tell it.
UNTOLD = 0.25


@dataclass(frozen=True)
class Errors:
    """Predictions of runs against what was measured.

    Attributes:
        logarithms: of predicted over measured seconds.
        halves: half the 90 % interval of each prediction, on the same scale.
        runs: what was measured.
    """

    logarithms: Floats
    halves: Floats
    runs: tuple[Measurement, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.logarithms)

    def quantile(self, part: float) -> float:
        """The relative error that this part of the runs does not pass."""
        return float(np.quantile(np.expm1(np.abs(self.logarithms)), part))

    @property
    def coverage(self) -> float:
        """Part of the runs that lie in their interval."""
        return float(np.mean(np.abs(self.logarithms) <= self.halves))


def _errors(found: Iterable[tuple[Fit, Sequence[Measurement]]]) -> Errors:
    logarithms, halves, runs = [np.empty(0)], [np.empty(0)], list[Measurement]()
    for fit, rows in found:
        runs += rows
        mean, deviation = fit.predict(rows)
        logarithms.append(mean - np.log([row.seconds for row in rows]))
        halves.append(HALF_90 * deviation)
    return Errors(np.concatenate(logarithms), np.concatenate(halves), tuple(runs))


def _without(fit: Fit, left: Sequence[Measurement]) -> Fit:
    kept = [row for row in fit.measurements if row not in left]
    found = fit_keys(fit.block, kept, fit.profile, fit.keys, fit.variances)
    between = max(found.variances.between, fit.variances.between)
    return replace(found, variances=Variances(between, found.variances.within))


def by_shape(fit: Fit) -> Errors:
    """Each part of the shapes predicted by a fit to the others."""
    parts = [[row for row in fit.measurements if fold(row) == number] for number in range(FOLDS)]
    return _errors((_without(fit, part), part) for part in parts if 0 < len(part) < len(fit.measurements))


def by_source(fit: Fit) -> Errors:
    """Each source predicted by a fit to the others, as far as these tell the numbers that its runs depend on."""
    found = []
    for source in fit.offsets if len(fit.offsets) > 1 else ():
        left = [row for row in fit.measurements if row.source == source]
        others = _without(fit, left)
        told = [row for row, is_told in zip(left, _told(fit, others, left), strict=True) if is_told]
        if told:
            found.append((others, told))
    return _errors(found)


def _told(fit: Fit, others: Fit, left: Sequence[Measurement]) -> NDArray[np.bool_]:
    """Which runs depend only on numbers that the others tell as well as it takes to say anything."""
    missing = [key for key in others.unidentified if key not in fit.unidentified]
    needed = slopes(Predictor(left, fit.profile), fit.profile, missing)
    return np.asarray((others.errors_of_numbers(left) < UNTOLD) & np.all(np.abs(needed) < NEEDED, axis=1))


def widened(fit: Fit, sources: Errors) -> Fit:
    """The fit with as much between sources as it takes for nine in ten runs of a source left out to be in their
    interval; what the fit itself says where there are fewer than ``ENOUGH`` such runs, or where that is more.
    """
    if len(sources) < ENOUGH:
        return fit
    squares = np.square(sources.logarithms / HALF_90) - np.square(sources.halves / HALF_90)
    missing = max(0.0, float(np.quantile(squares, 0.9)))
    between = float(np.hypot(fit.variances.between, np.sqrt(missing)))
    return replace(fit, variances=Variances(between, fit.variances.within))


def checked(profile: Profile, measurements: Iterable[Measurement]) -> dict[str, Errors]:
    """Runs that were kept for checking, by implementation; their intervals are not known."""
    by_name: dict[str, list[Measurement]] = {}
    for row in measurements:
        if row.use == "check":
            by_name.setdefault(f"{row.kernel} {row.implementation}", []).append(row)
    found = {}
    for name, rows in by_name.items():
        logarithms = np.log(Predictor(rows, profile)(profile)) - np.log([row.seconds for row in rows])
        found[name] = Errors(logarithms, np.zeros(len(rows)))
    return found
