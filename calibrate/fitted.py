"""What a fit found: numbers, what remains between sources and runs, and predictions with their errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibrate.block import Block
from calibrate.measurement import Measurement
from calibrate.predictor import Floats, Predictor, slopes
from calibrate.profile_numbers import values, variances_of_ranges
from costmodel.hardware.profile import Profile


@dataclass(frozen=True)
class Variances:
    """Standard deviations of logarithms: between sources, and between runs of one source."""

    between: float
    within: float


@dataclass(frozen=True)
class Fit:
    """Numbers fitted to some measurements, and how sure they are.

    Attributes:
        profile: with the fitted numbers in place.
        keys: the numbers that were fitted.
        offsets: of each source, in logarithms of predicted over measured seconds.
        covariance: of logarithms of the numbers, then of the offsets in order of sources.
        unidentified: keys that the measurements say too little of: they are as they were.
        rejected: terms that do not improve predictions: the profile is without them.
    """

    block: Block
    profile: Profile
    keys: tuple[str, ...]
    offsets: Mapping[str, float]
    covariance: Floats
    variances: Variances
    measurements: tuple[Measurement, ...] = field(repr=False)
    unidentified: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, float]:
        """The fitted numbers."""
        return values(self.profile, self.keys)

    def error(self, key: str) -> float:
        """Standard error of the logarithm of a number."""
        place = self.keys.index(key)
        return float(np.sqrt(self.covariance[place, place]))

    def predict(self, measurements: Sequence[Measurement]) -> tuple[Floats, Floats]:
        """Logarithms of the seconds of other runs, and standard deviations of their errors.

        What is known of a source's offset is used for other runs of that source.
        """
        jacobian = np.hstack([self._slopes(measurements), np.zeros((len(measurements), len(self.offsets)))])
        mean = np.log(Predictor(measurements, self.profile)(self.profile))
        place = {source: len(self.keys) + number for number, source in enumerate(self.offsets)}
        fresh = np.zeros(len(measurements))
        for number, row in enumerate(measurements):
            if row.source in place:
                jacobian[number, place[row.source]] = -1
                mean[number] -= self.offsets[row.source]
            else:
                fresh[number] = self.variances.between**2
        known = np.einsum("ij,jk,ik->i", jacobian, self.covariance, jacobian) + self._kept(measurements)
        return mean, np.sqrt(known + fresh + self.variances.within**2)

    def errors_of_numbers(self, measurements: Sequence[Measurement]) -> Floats:
        """Standard deviations of logarithms of the seconds of runs, from errors of the numbers alone."""
        jacobian, size = self._slopes(measurements), len(self.keys)
        known = np.einsum("ij,jk,ik->i", jacobian, self.covariance[:size, :size], jacobian)
        return np.asarray(np.sqrt(known + self._kept(measurements)))

    def _slopes(self, measurements: Sequence[Measurement]) -> Floats:
        return slopes(Predictor(measurements, self.profile), self.profile, self.keys)

    def _kept(self, measurements: Sequence[Measurement]) -> Floats:
        """Variances from the ranges of numbers that are as they were."""
        moving = slopes(Predictor(measurements, self.profile), self.profile, self.unidentified)
        return np.asarray(moving**2 @ variances_of_ranges(self.profile, self.unidentified))
