"""Least squares over logarithms of numbers and of the offsets of sources."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares

from calibrate.fitted import Variances
from calibrate.measurement import Measurement
from calibrate.predictor import Floats, Predictor, slopes
from calibrate.profile_numbers import HALF_90, limits, values
from costmodel.hardware.profile import Profile
from costmodel.uncertainty import moved

#: What is taken for the standard deviations where nothing else is known of them.
USUAL = Variances(0.05, 0.1)

#: Residuals of more standard deviations than this weigh less.
OUTLYING = 2.0

#: Sources needed to say what differs between sources.
SOURCES = 3

#: How far from the ends of what a number may be a fit stays, on a logarithmic scale: derivatives need room.
MARGIN = 1e-3

#: The least standard deviation that is believed: published numbers have two or three figures.
LEAST = 0.003


class Problem:
    """Least squares over logarithms of numbers and offsets of sources."""

    def __init__(self, rows: Sequence[Measurement], profile: Profile, keys: tuple[str, ...]) -> None:
        self.base, self.keys = profile, keys
        self.predictor = Predictor(rows, profile)
        self.measured = np.log([row.seconds for row in rows])
        self.sources = tuple(dict.fromkeys(row.source for row in rows))
        self.of_source = np.array([[row.source == source for source in self.sources] for row in rows], float)
        numbers = np.log(list(values(profile, keys).values()))
        ends = np.log([limits(profile, key) for key in keys]).reshape(-1, 2)
        free = np.full(len(self.sources), np.inf)
        self.low = np.concatenate([ends[:, 0] + MARGIN, -free])
        self.high = np.concatenate([ends[:, 1] - MARGIN, free])
        start = np.concatenate([numbers, np.zeros(len(self.sources))])
        self.start = np.clip(start, self.low + MARGIN, self.high - MARGIN)

    def profile(self, at: Floats) -> Profile:
        """The profile at a point."""
        return moved(self.base, dict(zip(self.keys, np.exp(at[: len(self.keys)]), strict=True)))

    def residuals(self, at: Floats) -> Floats:
        """Logarithms of predicted over measured seconds, less the sources' offsets."""
        offsets = self.of_source @ at[len(self.keys) :]
        return np.log(self.predictor(self.profile(at))) - self.measured - offsets

    def jacobian(self, at: Floats) -> Floats:
        """Derivatives of the residuals."""
        return np.hstack([slopes(self.predictor, self.profile(at), self.keys), -self.of_source])

    def solve(self, at: Floats, variances: Variances) -> Floats:
        """The point of least squares."""
        scale = np.concatenate([np.zeros(len(self.keys)), np.full(len(self.sources), 1 / variances.between)])

        def weighted(x: Floats) -> Floats:
            return np.concatenate([self.residuals(x) / variances.within, (scale * x)[len(self.keys) :]])

        def derivatives(x: Floats) -> Floats:
            return np.vstack([self.jacobian(x) / variances.within, np.diag(scale)[len(self.keys) :]])

        found = least_squares(
            weighted, at, derivatives, (self.low, self.high), loss="soft_l1", f_scale=OUTLYING, xtol=1e-6, ftol=1e-8
        )
        solution: Floats = found.x
        return solution

    def covariance(self, at: Floats, variances: Variances, known: float = 1e-6) -> Floats:
        """Of the point, outlying runs weighing less.

        Args:
            known: of each number's logarithm without any run, the inverse of the variance.
        """
        jacobian = self.jacobian(at) / variances.within
        weights = 1 / np.sqrt(1 + (self.residuals(at) / variances.within / OUTLYING) ** 2)
        before = np.concatenate([np.full(len(self.keys), known), np.full(len(self.sources), variances.between**-2)])
        inverse: Floats = np.linalg.inv(jacobian.T @ (weights[:, None] * jacobian) + np.diag(before))
        return inverse

    def variances(self, at: Floats, covariance: Floats, given: Variances) -> Variances:
        """Of sources, the expected square of their offsets (one step of expectation-maximisation); of runs, what holds
        nine in ten residuals in a 90 % interval.
        """
        freedom = len(self.measured) / max(1.0, len(self.measured) - len(self.keys))
        within = np.quantile(np.abs(self.residuals(at)), 0.9) / HALF_90 * np.sqrt(freedom)
        places = slice(len(self.keys), None)
        between = np.sqrt(np.mean(at[places] ** 2 + np.diag(covariance)[places]))
        if len(self.sources) < SOURCES:
            between = max(between, given.between) if len(self.sources) > 1 else given.between
        return Variances(float(max(between, LEAST)), float(max(within, LEAST)))
