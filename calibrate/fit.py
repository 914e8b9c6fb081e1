"""Numbers of a hardware profile fitted to measurements.

Every measurement is predicted by the formulas that plans are timed with, at the profile's numbers; some of these are
moved until the logarithms of predicted and measured seconds agree (robust least squares within bounds). Runs of one
source share an error (card, clock, library, way of timing), which is a parameter of its own with a normal prior; the
prior's standard deviation is what differs between sources. Terms that a kernel may have or not are taken in one by one
while they improve the prediction of shapes left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from calibrate.block import BLOCKS, Block
from calibrate.fitted import Fit, Variances
from calibrate.least_squares import SOURCES, USUAL, Problem
from calibrate.measurement import Measurement
from calibrate.predictor import Predictor, slopes
from calibrate.profile_numbers import started
from costmodel.hardware.profile import Profile, look_up, placed
from costmodel.hardware.quantity import Quantity

#: Parts into which shapes are divided for cross-validation.
FOLDS = 5

#: A term is taken in when it lowers the squared error on shapes left out by this part.
WORTH = 0.02

#: A number whose logarithm has a larger standard error than this (a factor of 2) is not identified.
UNIDENTIFIED = 0.7

#: A number is told by runs that lower its error to this part of what it is without any.
TOLD = 0.99

#: How the source of a number begins that a fit made.
FITTED = "fit to "

#: Rounds of estimating parameters and variances in turn.
ROUNDS = 8


def fit(
    block: Block, measurements: Iterable[Measurement], profile: Profile, variances: Variances | None = None
) -> Fit | None:
    """Fit a block's numbers, terms chosen by cross-validation; ``None`` without measurements of numbers of the profile.

    A term that the profile has from elsewhere stays where the measurements do not speak against it.

    Args:
        variances: what is known from other blocks, for a block with fewer than ``SOURCES`` sources.

    Raises:
        InputError: for a measurement that cannot be predicted.
    """
    rows = block.chosen(measurements)
    if not rows:
        return None
    profile = given = _uncorrelated(block, profile)
    (keys, *terms) = _relevant(block, rows, profile)
    if not keys:
        return None
    profile = placed(profile, {key: None for term in terms for key in term})
    best = validation_error(block, rows, profile, keys)
    for term in terms:
        tried = validation_error(block, rows, profile, keys + term)
        with_known = placed(profile, _known(given, term))
        known = validation_error(block, rows, with_known, keys) if with_known != profile else np.inf
        if tried < (1 - WORTH) * min(best, known):
            keys, best = keys + term, tried
        elif known <= (1 + WORTH) * best:
            profile, best = with_known, known
    held = {key for term in terms for key in term if look_up(profile, key) is not None}
    rejected = tuple(key for term in terms for key in term if key not in keys and key not in held)
    return replace(fit_keys(block, rows, profile, keys, variances), rejected=rejected)


def _known(profile: Profile, keys: Iterable[str]) -> dict[str, Quantity | None]:
    """Numbers that a profile has from elsewhere than a fit of its own."""
    found = {key: look_up(profile, key) for key in keys}
    return {key: q for key, q in found.items() if isinstance(q, Quantity) and not q.source.startswith(FITTED)}


def _uncorrelated(block: Block, profile: Profile) -> Profile:
    """The profile without what an earlier fit of the block said of correlations."""
    fitted = {*block.keys, *(key for term in block.terms for key in term)}
    kept = tuple(one for one in profile.correlations if not fitted & set(one.of))
    return msgspec.structs.replace(profile, correlations=kept)


def _relevant(block: Block, rows: Sequence[Measurement], profile: Profile) -> list[tuple[str, ...]]:
    """Keys, and keys of each term, that some measurement depends on; a profile that has others keeps them.

    A family of which the profile says nothing has the numbers of another, and no terms.
    """
    held = tuple(key for key in block.keys if look_up(profile, key) is not None or ".collectives." in key)
    terms = (tuple(key for key in term if look_up(profile, key.rpartition(".")[0]) is not None) for term in block.terms)
    groups = (held, *terms)
    every = [key for group in groups for key in group]
    base = started(profile, every)
    moving = dict(zip(every, np.any(slopes(Predictor(rows, base), base, every) != 0, axis=0), strict=True))
    found = [tuple(key for key in group if moving[key]) for group in groups]
    return [found[0], *(group for group in found[1:] if group)]


def fold(row: Measurement) -> int:
    """The part that a shape belongs to in cross-validation; the same shape of all sources is in one part."""
    return place(row) % FOLDS


def place(row: Measurement) -> int:
    """Of a shape in an order that has nothing to do with its sizes."""
    return zlib.crc32(f"{row.kernel} {sorted(row.sizes.items())}".encode())


def validation_error(block: Block, rows: Sequence[Measurement], profile: Profile, keys: tuple[str, ...]) -> float:
    """Mean absolute logarithm of predicted over measured seconds of shapes that were left out."""
    errors: list[float] = []
    for number in range(FOLDS):
        kept = [row for row in rows if fold(row) != number]
        left = [row for row in rows if fold(row) == number]
        if kept and left:
            found = fit_keys(block, kept, profile, keys, rounds=2)
            errors.extend(np.abs(found.predict(left)[0] - np.log([row.seconds for row in left])))
    return float(np.mean(errors)) if errors else np.inf


def fit_keys(
    block: Block,
    rows: Sequence[Measurement],
    profile: Profile,
    keys: tuple[str, ...],
    variances: Variances | None = None,
    rounds: int = ROUNDS,
) -> Fit:
    """Fit just these numbers; those that the measurements say too little of keep their value."""
    dropped: tuple[str, ...] = ()
    while True:
        found = _fit_all(block, rows, started(profile, keys), keys, variances, rounds)
        worst = max(found.keys, key=found.error, default=None)
        if worst is None or found.error(worst) < UNIDENTIFIED:
            return replace(found, unidentified=dropped)
        dropped, keys = (*dropped, worst), tuple(key for key in keys if key != worst)
        if look_up(profile, worst) is None:
            profile = started(profile, [worst])


def _fit_all(
    block: Block,
    rows: Sequence[Measurement],
    profile: Profile,
    keys: tuple[str, ...],
    given: Variances | None,
    rounds: int,
) -> Fit:
    problem = Problem(rows, profile, keys)
    variances = given = given or USUAL
    at = problem.start
    for _ in range(rounds):
        at = problem.solve(at, variances)
        covariance = problem.covariance(at, variances)
        variances = problem.variances(at, covariance, given)
    offsets = dict(zip(problem.sources, at[len(keys) :], strict=True))
    return Fit(block, problem.profile(at), keys, offsets, problem.covariance(at, variances), variances, tuple(rows))


def settled(
    block: Block, rows: Sequence[Measurement], profile: Profile, keys: tuple[str, ...], variances: Variances
) -> Fit:
    """Numbers as the profile has them, found otherwise, and how sure these runs make them; before any run each is known
    as well as it takes to be identified. Those that the runs say nothing of are not of the fit.
    """
    problem, known = Problem(rows, profile, keys), UNIDENTIFIED**-2
    at = problem.start
    for _ in range(2):
        covariance = problem.covariance(at, variances, known)
        variances = problem.variances(at, covariance, variances)
    errors = np.sqrt(np.diag(covariance)[: len(keys)])
    told = [place for place, error in enumerate(errors) if error < TOLD * UNIDENTIFIED]
    places = [*told, *range(len(keys), len(at))]
    return Fit(
        block,
        profile,
        tuple(keys[place] for place in told),
        dict(zip(problem.sources, at[len(keys) :], strict=True)),
        covariance[np.ix_(places, places)],
        variances,
        tuple(rows),
        tuple(key for place, key in enumerate(keys) if place not in told),
    )


def fit_profile(
    profile: Profile, measurements: Sequence[Measurement], blocks: Sequence[Block] = BLOCKS
) -> tuple[Profile, list[Fit]]:
    """Every block fitted in turn, each with what the ones before found.

    What differs between sources is, for a block with few, what differs between cards.

    Raises:
        InputError: for a measurement that cannot be predicted.
    """
    fits: list[Fit] = []
    variances: Variances | None = None
    for block in blocks:
        found = fit(block, measurements, profile, variances)
        if found is None:
            continue
        profile = found.profile
        fits.append(found)
        if block.cards and len(found.offsets) >= SOURCES:
            variances = found.variances
    return profile, fits
