"""Numbers of a hardware profile fitted to measurements.

Every measurement is predicted by the formulas that plans are timed with, at the profile's numbers; some of these are
moved until the logarithms of predicted and measured seconds agree (robust least squares within bounds). Runs of one
source share an error (card, clock, library, way of timing), which is a parameter of its own with a normal prior; the
prior's standard deviation is what differs between sources. Terms that a kernel may have or not are taken in one by one
while they improve the prediction of shapes left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from calibrate.cases import axis, program
from calibrate.measurement import Measurement
from costmodel.compiled import Compiled
from costmodel.errors import UnknownNameError
from costmodel.expression import Expression, lift
from costmodel.hardware.cluster import Cluster
from costmodel.hardware.profile import Profile, look_up, placed
from costmodel.hardware.quantity import ALLOWED, Quantity
from costmodel.rates import Rates
from costmodel.timing import times
from costmodel.uncertainty import moved

Floats = NDArray[np.float64]

#: Half a 90 % interval of a normal distribution, in standard deviations.
HALF_90 = 1.6449

#: Residuals of more standard deviations than this weigh less.
OUTLYING = 2.0

#: Parts into which shapes are divided for cross-validation.
FOLDS = 5

#: Sources needed to say what differs between sources.
SOURCES = 3

#: A term is taken in when it lowers the squared error on shapes left out by this part.
WORTH = 0.02

#: A number whose logarithm has a larger standard error than this (a factor of 2) is not identified.
UNIDENTIFIED = 0.7

#: How far from the ends of what a number may be a fit stays, on a logarithmic scale: derivatives need room.
MARGIN = 1e-3

#: The least standard deviation that is believed: published numbers have two or three figures.
LEAST = 0.003

#: Rounds of estimating parameters and variances in turn.
ROUNDS = 8


class Predictor:
    """Seconds of measured runs by a profile."""

    def __init__(self, measurements: Sequence[Measurement], profile: Profile) -> None:
        self.measurements = tuple(measurements)
        tile = profile.device.kernels.attention.tile or 1
        by_dtype: dict[str, dict[str, Expression]] = {}
        for number, row in enumerate(self.measurements):
            run = program(row, tile)
            seconds = lift(times(run.forward).total + times(run.backward).total)
            by_dtype.setdefault(row.dtype, {})[str(number)] = seconds
        self._compiled = {dtype: Compiled(formulas) for dtype, formulas in by_dtype.items()}
        self._ranks = sorted({int(row.sizes["P"]) for row in self.measurements if "P" in row.sizes})

    def __call__(self, profile: Profile) -> Floats:
        """Seconds of each run."""
        found = np.empty(len(self.measurements))
        for dtype, compiled in self._compiled.items():
            values = Rates(Cluster(profile, 1), dtype).device(compiled.symbols)
            for ranks in self._ranks:
                name = axis(ranks)
                symbols = [symbol for symbol in compiled.symbols if symbol.split(":")[1:2] == [name]]
                one = np.ones(1)
                values |= Rates(Cluster(profile, ranks), dtype).links(symbols, {name: ranks * one}, {name: one})
            for number, seconds in compiled(values).items():
                found[int(number)] = seconds[0]
        return found


@dataclass(frozen=True)
class Block:
    """Numbers that are fitted together.

    Attributes:
        kernels: measured kernels that inform them.
        families: kernel families of the profile that are predicted by them.
        keys: numbers that every fit has, as far as measurements depend on them.
        terms: numbers of which a fit has those that improve predictions, in the order in which they are tried; those
            of one entry belong together.
        cards: whether what differs between its sources is what differs between cards.
    """

    name: str
    kernels: tuple[str, ...]
    families: tuple[str, ...]
    keys: tuple[str, ...]
    terms: tuple[tuple[str, ...], ...] = ()
    cards: bool = False

    def chosen(self, measurements: Iterable[Measurement]) -> list[Measurement]:
        """Those that it is fitted to."""
        return [row for row in measurements if row.kernel in self.kernels and row.use == "fit"]


def _kernel(family: str, *names: str) -> tuple[str, ...]:
    return tuple(f"device.kernels.{family}.{name}" for name in names)


#: Collectives that have a bus bandwidth of their own; a ring shift has that of the link.
BUS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")

#: In the order in which they are fitted: later ones build on numbers of earlier ones.
BLOCKS = (
    Block(
        "memory",
        ("swiglu", "add_rms_norm", "rope", "scale", "gelu", "layer_norm", "copy", "embedding", "softmax"),
        ("elementwise", "gather", "copy", "reduction"),
        (
            "device.launch_s",
            *(f"device.kernels.{family}.memory" for family in ("elementwise", "gather", "copy")),
            "device.kernels.reduction.memory",
        ),
        (("device.cache_bytes", "device.cache_bytes_per_s"),),
    ),
    Block(
        "gemm",
        ("gemm",),
        ("gemm",),
        _kernel("gemm", "compute", "memory"),
        (_kernel("gemm", "exposed"), _kernel("gemm", "launch_s")),
        cards=True,
    ),
    Block(
        "attention",
        ("attention", "decode_attention"),
        ("attention",),
        _kernel("attention", "compute", "memory"),
        (_kernel("attention", "ramp"), _kernel("attention", "launch_s")),
    ),
    Block(
        "attention backward",
        ("attention_training",),
        ("attention_backward",),
        _kernel("attention_backward", "compute"),
        (_kernel("attention_backward", "ramp"),),
    ),
    Block(
        "link",
        ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "ring_shift"),
        ("links[0]",),
        (
            "links[0].latency_s",
            "links[0].bytes_per_s",
            *(f"links[0].collectives.{name}" for name in BUS),
        ),
        (("links[0].start_s",), ("links[0].small_latency_s", "links[0].small_cost")),
    ),
)


def blocks(names: Iterable[str]) -> tuple[Block, ...]:
    """Blocks by name, in the order in which they are fitted; all without names.

    Raises:
        UnknownNameError: for a name that is none.
    """
    known, chosen = [block.name for block in BLOCKS], set(names)
    for name in chosen - set(known):
        raise UnknownNameError("block of numbers", name, known)
    return tuple(block for block in BLOCKS if not chosen or block.name in chosen)


#: What a profile says of a number that it did not have and the measurements do not tell.
START = "where the fit starts, of the usual size; the measured runs do not say it"

#: Where numbers that a profile does not have start; a term that is left out is as if it were not there.
STARTS = {
    "exposed": 0.2,
    "ramp": 100.0,
    "launch_s": 4e-6,
    "cache_bytes": 30e6,
    "cache_bytes_per_s": 3e12,
    "start_s": 8e-6,
    "small_latency_s": 1.5e-6,
    "small_cost": 2.0,
}


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
        return _values(self.profile, self.keys)

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
        return np.asarray(moving**2 @ _ranges(self.profile, self.unidentified))


def _values(profile: Profile, keys: Iterable[str]) -> dict[str, float]:
    quantities = {key: look_up(profile, key) for key in keys}
    return {key: quantity.value for key, quantity in quantities.items() if isinstance(quantity, Quantity)}


def _ranges(profile: Profile, keys: Iterable[str]) -> Floats:
    """Variances of logarithms of numbers, of which the range is taken for a 90 % interval."""
    found = [quantity for quantity in (look_up(profile, key) for key in keys) if isinstance(quantity, Quantity)]
    halves = np.array([np.log(quantity.hi / quantity.lo) / 2 for quantity in found])
    return np.square(halves / HALF_90)


def slopes(predictor: Predictor, profile: Profile, keys: Sequence[str], step: float = 1e-5) -> Floats:
    """Derivatives of logarithms of seconds by logarithms of numbers."""
    here = np.log(predictor(profile))
    columns = []
    for key, value in _values(profile, keys).items():
        there = np.log(predictor(moved(profile, {key: value * np.exp(-step)})))
        columns.append((here - there) / step)
    return np.stack(columns, axis=1) if columns else np.zeros((len(predictor.measurements), 0))


def started(profile: Profile, keys: Iterable[str]) -> Profile:
    """The profile with a number at each key: its own where it has one."""
    for key in keys:
        if look_up(profile, key) is None:
            value = STARTS.get(key.rpartition(".")[2])
            if value is None:  # of a collective: as the link's
                number = Quantity(_values(profile, ["links[0].bytes_per_s"])["links[0].bytes_per_s"], START, "assumed")
            else:
                number = Quantity(value, START, "assumed", low=value / 2, high=value * 2)
            profile = placed(profile, {key: number})
    return profile


def fit(
    block: Block, measurements: Iterable[Measurement], profile: Profile, variances: Variances | None = None
) -> Fit | None:
    """Fit a block's numbers, terms chosen by cross-validation; ``None`` without measurements.

    Args:
        variances: what is known from other blocks, for a block with fewer than ``SOURCES`` sources.

    Raises:
        InputError: for a measurement that cannot be predicted.
    """
    rows = block.chosen(measurements)
    if not rows:
        return None
    profile = _uncorrelated(block, profile)
    (keys, *terms) = _relevant(block, rows, profile)
    profile = placed(profile, {key: None for term in terms for key in term})
    best = validation_error(block, rows, profile, keys)
    for term in terms:
        tried = validation_error(block, rows, profile, keys + term)
        if tried < (1 - WORTH) * best:
            keys, best = keys + term, tried
    rejected = tuple(key for term in terms for key in term if key not in keys)
    return replace(fit_keys(block, rows, profile, keys, variances), rejected=rejected)


def _uncorrelated(block: Block, profile: Profile) -> Profile:
    """The profile without what an earlier fit of the block said of correlations."""
    fitted = {*block.keys, *(key for term in block.terms for key in term)}
    kept = tuple(one for one in profile.correlations if not fitted & set(one.of))
    return msgspec.structs.replace(profile, correlations=kept)


def _relevant(block: Block, rows: Sequence[Measurement], profile: Profile) -> list[tuple[str, ...]]:
    """Keys, and keys of each term, that some measurement depends on; a profile that has others keeps them."""
    held = tuple(key for key in block.keys if look_up(profile, key) is not None or ".collectives." in key)
    groups = (held, *block.terms)
    every = [key for group in groups for key in group]
    base = started(profile, every)
    moving = dict(zip(every, np.any(slopes(Predictor(rows, base), base, every) != 0, axis=0), strict=True))
    found = [tuple(key for key in group if moving[key]) for group in groups]
    return [found[0], *(group for group in found[1:] if group)]


def fold(row: Measurement) -> int:
    """The part that a shape belongs to in cross-validation; the same shape of all sources is in one part."""
    return zlib.crc32(f"{row.kernel} {sorted(row.sizes.items())}".encode()) % FOLDS


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
    problem = _Problem(rows, profile, keys)
    variances = given or Variances(0.05, 0.1)
    at = problem.start
    for _ in range(rounds):
        at = problem.solve(at, variances)
        covariance = problem.covariance(at, variances)
        variances = problem.variances(at, covariance, given)
    offsets = dict(zip(problem.sources, at[len(keys) :], strict=True))
    return Fit(block, problem.profile(at), keys, offsets, problem.covariance(at, variances), variances, tuple(rows))


def limits(profile: Profile, key: str) -> tuple[float, float]:
    """Between what a number may lie; a link's rates below its line rate, or twice that for a sum in the switch."""
    name = key.rpartition(".")[2]
    allowed = ALLOWED[name]
    if key.startswith("links") and (name == "bytes_per_s" or ".collectives." in key):
        line = _values(profile, ["links[0].peak_bytes_per_s"])["links[0].peak_bytes_per_s"]
        return allowed.low, line * (2 if name == "all_reduce" else 1)
    return allowed.low, allowed.high


class _Problem:
    """Least squares over logarithms of numbers and offsets of sources."""

    def __init__(self, rows: Sequence[Measurement], profile: Profile, keys: tuple[str, ...]) -> None:
        self.base, self.keys = profile, keys
        self.predictor = Predictor(rows, profile)
        self.measured = np.log([row.seconds for row in rows])
        self.sources = tuple(dict.fromkeys(row.source for row in rows))
        self.of_source = np.array([[row.source == source for source in self.sources] for row in rows], float)
        numbers = np.log(list(_values(profile, keys).values()))
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

    def covariance(self, at: Floats, variances: Variances) -> Floats:
        """Of the point, outlying runs weighing less."""
        jacobian = self.jacobian(at) / variances.within
        weights = 1 / np.sqrt(1 + (self.residuals(at) / variances.within / OUTLYING) ** 2)
        known = np.concatenate([np.full(len(self.keys), 1e-6), np.full(len(self.sources), variances.between**-2)])
        inverse: Floats = np.linalg.inv(jacobian.T @ (weights[:, None] * jacobian) + np.diag(known))
        return inverse

    def variances(self, at: Floats, covariance: Floats, given: Variances | None) -> Variances:
        """Of sources, the expected square of their offsets (one step of expectation-maximisation); of runs, what holds
        nine in ten residuals in a 90 % interval.
        """
        freedom = len(self.measured) / max(1.0, len(self.measured) - len(self.keys))
        within = np.quantile(np.abs(self.residuals(at)), 0.9) / HALF_90 * np.sqrt(freedom)
        places = slice(len(self.keys), None)
        between = np.sqrt(np.mean(at[places] ** 2 + np.diag(covariance)[places]))
        if len(self.sources) < SOURCES and given is not None:
            between = max(between, given.between) if len(self.sources) > 1 else given.between
        return Variances(float(max(between, LEAST)), float(max(within, LEAST)))


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
