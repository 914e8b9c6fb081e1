"""A profile of the machine that measurements were taken on: every kernel that was timed gets numbers of its own.

Numbers of families, by which kernels that were not timed are predicted, are fitted first, and then those of single
kernels: launch, and the rates of arithmetic and of memory; families of one kernel have more to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import msgspec
import numpy as np

from calibrate.additive import ALIKE, amounts, costs, kernel, predicted, special_rate
from calibrate.block import BLOCKS, Block
from calibrate.cases import SEVERAL, case, program
from calibrate.fit import FOLDS, fit, fit_keys, fold, place, settled
from calibrate.fitted import Fit, Variances
from calibrate.held_out import Errors, checked
from calibrate.least_squares import LEAST
from calibrate.measurement import Measurement
from calibrate.profile_file import Changes, changes, plain, read, rewritten
from calibrate.profile_numbers import HALF_90
from calibrate.store import Environment
from costmodel.hardware.profile import STAND_INS, Device, Family, Kernel, Profile, look_up, placed
from costmodel.hardware.quantity import Quantity
from costmodel.masks import Tile
from costmodel.ops.primitive import Reading
from costmodel.program import Operation, operations

#: Shapes from which numbers of a single kernel are fitted; with fewer it has those of its family.
ENOUGH = 4

#: One machine, one source: nothing differs between sources, and runs by about a tenth.
ONE_SOURCE = Variances(LEAST, 0.1)

#: Parts of the last-level cache that are tried.
CACHE_PARTS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)

#: Operands of which so many bytes move come from memory, on any machine.
FROM_MEMORY = 2.0**26

#: FLOP classes that the matrix unit does not do.
OTHERS = ("elementwise", "special", "reduction", "fft", "sort", "gather")

FAMILIES = get_args(Family)

#: The family whose runs say the rate of special functions, for all that have no numbers of their own.
SPECIAL = "elementwise"


@dataclass(frozen=True)
class Part:
    """What one run is in a family: the operation that is timed, and its time.

    Attributes:
        products, others: FLOP of the matrix unit and of others.
        bytes: that move.
    """

    row: Measurement
    operation: Operation
    products: float
    others: float
    bytes: float

    @classmethod
    def of(cls, row: Measurement, tile: Tile) -> Part | None:
        """The one kernel of a run, or ``None`` where it is several or a collective."""
        known = [
            one for one, _ in operations(program(row, tile).forward) if one.family not in ("view", "communication")
        ]
        if len(known) != 1:
            return None
        flops = known[0].flops(Reading.EXECUTED)
        others = sum(float(flops.get(kind, 0)) for kind in OTHERS)
        return cls(row, known[0], float(flops.get("contraction", 0)), others, float(sum(known[0].traffic())))


def parts(rows: Iterable[Measurement], tile: Tile) -> list[Part]:
    """The kernels of runs that are fitted."""
    found = (Part.of(row, tile) for row in rows if row.use == "fit" and case(row).family != "link")
    return [part for part in found if part is not None]


# The profile that a fit starts from -----------------------------------------------------------------------------------


def started_text(text: str, environment: Environment, rows: Sequence[Measurement], name: str) -> str:
    """The text of a profile with this machine's name, and the fastest that was measured as its peaks.

    On a CPU nothing stays of single kernels: those of the profile are of another one.
    """
    text = plain(text) if environment.kind == "cpu" else text
    base = read(text, name)
    title = f"{environment.device}, {environment.threads} thread{'s' * (environment.threads > 1)}"
    for old, new in ((base.name, name), (base.title, title), (base.device.name, environment.device)):
        text = text.replace(f'"{old}"', f'"{new}"', 1)
    measured = {key: _own(key, value, environment) for key, value in _peaks(base, environment, rows).items()}
    whole = dict(base.device.kernels.items())
    stand_ins = {
        f"device.kernels.{family}.{key}": getattr(whole[other], key)
        for family, other in STAND_INS.items()
        if family not in whole
        for key in ("compute", "memory")
    }
    launches = {f"device.kernels.{family}.launch_s": base.device.launch_s for family in FAMILIES}
    shift = "links[0].collectives.ring_shift"  # has the link's own rate, which is fitted
    own_link = {shift: None} if any(row.kernel == "ring_shift" for row in rows) else {}
    return rewritten(text, Changes({**measured, **stand_ins, **launches, **own_link}, ()))


def _own(key: str, value: float, environment: Environment) -> Quantity:
    told = "the machine's memory for each device" if key == "device.memory_bytes" else "the fastest of the runs"
    source = f"{told}, {environment.date[:10]}, {environment.command}"
    return Quantity(float(f"{value:.4g}"), source, "measured")


def _peaks(base: Profile, environment: Environment, rows: Sequence[Measurement]) -> dict[str, float]:
    """Peaks by their keys, of those that were measured."""
    found = parts(rows, base.device.attention_tile)
    devices = base.links[0].devices if environment.kind == "cpu" and base.links else 1
    peaks = {"device.memory_bytes": environment.memory_bytes / max(devices, 1)}
    for dtype in sorted({part.row.dtype for part in found}):
        own = [part for part in found if part.row.dtype == dtype and part.operation.family == "gemm"]
        peaks |= _best(f"device.peak_flop_per_s.{dtype}_dense", own, lambda part: part.products)
        for family in ("attention", "attention_backward"):
            key = f"device.kernels.{family}.flop_per_s.{dtype}_dense"
            if look_up(base, key) is not None:
                mine = [part for part in found if part.row.dtype == dtype and part.operation.family == family]
                peaks |= _best(key, mine, lambda part: part.products)
    if environment.kind == "cpu":
        peaks |= {"device.vector_flop_per_s": peaks.get("device.peak_flop_per_s.fp32_dense", 0.0)}
    moved = [part for part in found if part.bytes >= max(FROM_MEMORY, 2.0 * environment.cache_bytes)]
    peaks |= _best("device.memory_bytes_per_s", moved, lambda part: part.bytes)
    if environment.kind == "cpu":
        own = [part for part in found if part.row.dtype == "fp32"]
        peaks |= {"device.cache_bytes": _held_bytes(own, environment.cache_bytes)}
    return {key: value for key, value in peaks.items() if value > 0}


def _held_bytes(found: Sequence[Part], cache_bytes: int) -> float:
    """How much of the last-level cache kernels find their operands in: of some sizes, the one by which the sums of
    their costs explain the runs best.
    """

    def error(size: float) -> float:
        every = []
        for own in singles(found).values():
            each = [amounts(part.operation, size, True) for part in own]
            seconds = np.array([part.row.seconds for part in own])
            every.append(np.abs(np.log(predicted(each, costs(each, seconds)) / seconds)))
        return float(np.mean(np.concatenate(every))) if every else 0.0

    return min((cache_bytes * part for part in CACHE_PARTS), key=error)


def _best(key: str, found: Sequence[Part], amount: Callable[[Part], float]) -> dict[str, float]:
    rates = [amount(part) / part.row.seconds for part in found]
    return {key: max(rates)} if rates else {}


# Blocks of numbers ----------------------------------------------------------------------------------------------------


def singles(found: Sequence[Part]) -> dict[str, list[Part]]:
    """Runs of each kernel that is not all of its family, of which there are enough."""
    by_name: dict[str, list[Part]] = {}
    in_family: dict[str, set[str]] = {}
    for part in found:
        family, name = part.operation.kernel
        by_name.setdefault(name, []).append(part)
        in_family.setdefault(family, set()).add(name)
    return {
        name: own for name, own in by_name.items() if len(own) >= ENOUGH and len(in_family[own[0].operation.family]) > 1
    }


# Fitting --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """A profile fitted to a machine's own measurements.

    Attributes:
        text: the profile's file, before the fit.
        fits: of families, single kernels and the link.
        errors: on shapes left out, by kernel family (``"link"`` for collectives); each kernel by its own numbers.
        checks: errors on runs kept for checking, by what ran.
    """

    profile: Profile
    text: str
    fits: Sequence[Fit]
    errors: Mapping[str, Errors]
    checks: Mapping[str, Errors]

    def file(self, command: str, date: str) -> str:
        """The profile's file with everything that was fitted."""
        made = changes(self.fits, command, date, "measured")
        kept = {
            key: number
            for fit in self.fits
            for key in fit.unidentified
            if key.startswith("device.") and isinstance(number := look_up(fit.profile, key), Quantity)
        }
        return rewritten(self.text, replace(made, numbers={**made.numbers, **kept}))


#: Told what is being fitted, and which part of all is done.
Tell = Callable[[str, float], None]


def fit_machine(text: str, file: str, rows: Sequence[Measurement], tell: Tell) -> Machine:
    """Fit families, then single kernels, then the link.

    Args:
        text: of the profile to start from (``started_text``).

    Raises:
        InputError: for a measurement that cannot be predicted.
    """
    profile = read(text, file)
    own = [row for row in rows if row.dtype == "fp32" or case(row).family == "link"]
    found = parts(own, profile.device.attention_tile)
    among = {id(part.row) for mine in singles(found).values() for part in mine}
    groups = [*by_family(found), *by_kernel(found, profile.device)]
    families = dict[str, list[_Tried]]()
    for done, group in enumerate(groups):
        tell(group.name, done / (len(groups) + 1))
        made = group.fit(profile)
        profile = made.profile
        rest = [part.row for part in group.parts if group.alone or id(part.row) not in among]
        families.setdefault(group.family, []).append(_Tried(made, group.held_out(made), rest))
    fits = [fit for tried in families.values() for fit in widened(tried)]
    errors = {family: reported(tried) for family, tried in families.items()}
    tell("link", len(groups) / (len(groups) + 1))
    link = fit(link_block(own), own, profile, ONE_SOURCE)
    if link is not None:
        profile = link.profile
        fits.append(link)
        errors["link"] = held_out(link)
    return Machine(profile, text, fits, errors, checked(profile, own))


def link_block(rows: Iterable[Measurement]) -> Block:
    """The link's numbers, with what transfers share where several at once were measured."""
    one = next(block for block in BLOCKS if block.name == "link")
    if not any(row.kernel in SEVERAL for row in rows):
        return one
    return replace(one, kernels=(*one.kernels, *SEVERAL), terms=(("links[0].shared_bytes_per_s",), *one.terms))


def by_family(found: Sequence[Part]) -> list[Group]:
    """Everything that was measured of each family."""
    families: dict[str, list[Part]] = {}
    for part in found:
        families.setdefault(part.operation.family, []).append(part)
    return [Group(f"device.kernels.{family}", family, own) for family, own in families.items()]


def by_kernel(found: Sequence[Part], device: Device) -> list[Group]:
    """Single kernels, each with what the others of its family cost."""
    groups = []
    for name, own in singles(found).items():
        family = own[0].operation.family
        others = [part for part in found if part.operation.family == family and part.operation.kernel[1] != name]
        usual = {what: cost for what, cost in _costs(others, device, False).items() if what in ALIKE}
        groups.append(Group(f"device.single.{name}", name, own, usual))
    return groups


def _costs(
    parts: Sequence[Part], device: Device, alone: bool, usual: Mapping[str, float] | None = None
) -> dict[str, float]:
    cache = device.cache_bytes.value if device.cache_bytes else 1.0
    each = [amounts(part.operation, cache, alone) for part in parts]
    return costs(each, np.array([part.row.seconds for part in parts]), usual)


@dataclass(frozen=True)
class Group:
    """Runs that have their numbers in common: of one kernel, or of all of a family.

    Attributes:
        path: of the kernel in the profile.
        usual: costs of kernels like it.
    """

    path: str
    name: str
    parts: Sequence[Part]
    usual: Mapping[str, float] = field(default_factory=dict)

    @property
    def family(self) -> str:
        return self.parts[0].operation.family

    @property
    def alone(self) -> bool:
        """Whether it is one kernel."""
        return self.path.startswith("device.single.")

    def fit(self, profile: Profile, variances: Variances = ONE_SOURCE) -> Fit:
        """The costs that explain the runs best, as numbers of the profile."""
        start, special = self._start(profile.device)
        before: dict[str, Quantity | Kernel] = {self.path: start}
        keys = [f"{self.path}.{key}" for key in sorted(_numbers(start)) if key != "exposed"]
        held = look_up(profile, self.path)
        gone = _numbers(held) - _numbers(start) - {"spread"} if isinstance(held, Kernel) else set()
        if special is not None:
            before["device.special_op_per_s"] = special
            keys.append("device.special_op_per_s")
        names = tuple(dict.fromkeys(part.row.kernel for part in self.parts))
        block = Block(self.name, names, (self.path if self.alone else self.name,), tuple(keys))
        made = settled(block, [part.row for part in self.parts], placed(profile, before), tuple(keys), variances)
        given = tuple(f"{self.path}.exposed" for _ in (start.exposed,) if start.exposed is not None)
        rejected = tuple(f"{self.path}.{key}" for key in sorted(gone))
        return replace(made, unidentified=(*made.unidentified, *given), rejected=rejected)

    def _start(self, device: Device) -> tuple[Kernel, Quantity | None]:
        """The kernel, and the rate of special functions where it tells one."""
        found = _costs(self.parts, device, self.alone, self.usual)
        family = self.family
        made = kernel(found, device, family)
        if not self.alone:  # how the kernel works stays
            held = device.kernels.taken(family)
            made = msgspec.structs.replace(made, tile=held.tile, columns=held.columns, flop_per_s=held.flop_per_s)
        return made, special_rate(found) if family == SPECIAL else None

    def held_out(self, made: Fit) -> list[Errors]:
        """Each fifth of the shapes predicted by a fit to the others; their variances are those of all."""
        errors, ordered = [], sorted(self.parts, key=lambda part: place(part.row))
        for number in range(FOLDS):
            kept = [part for at, part in enumerate(ordered) if at % FOLDS != number]
            left = [part.row for part in ordered[number::FOLDS]]
            if kept and left:
                other = replace(self, parts=kept).fit(made.profile, made.variances)
                errors.append(_errors(other, left))
        return errors


def _numbers(kernel: Kernel) -> set[str]:
    """Keys of the numbers that a kernel has."""
    return {key for key in kernel.__struct_fields__ if isinstance(getattr(kernel, key), Quantity)}


def held_out(made: Fit) -> Errors:
    """Each part of the shapes predicted by a fit of the same numbers to the others."""
    errors = []
    for number in range(FOLDS):
        kept = [row for row in made.measurements if fold(row) != number]
        left = [row for row in made.measurements if fold(row) == number]
        if kept and left:
            errors.append(_errors(fit_keys(made.block, kept, made.profile, made.keys, made.variances, rounds=2), left))
    return joined(errors)


@dataclass(frozen=True)
class _Tried:
    """A fit of one kernel or of a family, and how far off each part of its shapes was, left out.

    Attributes:
        own: runs that are predicted by these numbers.
    """

    made: Fit
    left_out: Sequence[Errors]
    own: Sequence[Measurement]

    @property
    def parts(self) -> list[Errors]:
        """Of the runs that it predicts."""
        return [_only(part, self.own) for part in self.left_out]


def stretch(errors: Errors) -> float:
    """How many times as wide intervals must be for nine in ten of further runs like these to be in theirs.

    The 90 % point of so few is taken for that of all with one beyond it added (split conformal prediction; Lei et al.,
    Distribution-Free Predictive Inference for Regression, arXiv 1604.04173, section 2.2).
    """
    if not len(errors):
        return 1.0
    ratios = np.sort(np.abs(errors.logarithms) / errors.halves)
    return float(ratios[min(math.ceil(0.9 * (len(ratios) + 1)), len(ratios)) - 1])


def widened(tried: Sequence[_Tried]) -> list[Fit]:
    """Fits of a family, with intervals as wide as shapes left out of all its kernels need.

    Numbers of the whole family are for kernels that were not measured: their intervals are as wide as its runs need.
    """
    common = stretch(joined([part for one in tried for part in one.parts]))
    return [_widened(one.made, common if one.own else stretch(joined(one.left_out))) for one in tried]


def reported(tried: Sequence[_Tried]) -> Errors:
    """Shapes left out of a family, the intervals of each part as wide as all the others need."""
    parts = [part for one in tried for part in one.parts if len(part)]
    factors = [stretch(joined([other for other in parts if other is not part])) for part in parts]
    return joined([replace(part, halves=factor * part.halves) for part, factor in zip(parts, factors, strict=True)])


def _widened(made: Fit, factor: float) -> Fit:
    variances = Variances(made.variances.between, factor * made.variances.within)
    return replace(made, covariance=factor**2 * made.covariance, variances=variances)


def _errors(made: Fit, left: Sequence[Measurement]) -> Errors:
    mean, deviation = made.predict(left)
    return Errors(mean - np.log([row.seconds for row in left]), HALF_90 * deviation, tuple(left))


def _only(errors: Errors, rows: Sequence[Measurement]) -> Errors:
    kept = [place for place, run in enumerate(errors.runs) if any(run is row for row in rows)]
    return Errors(errors.logarithms[kept], errors.halves[kept], tuple(errors.runs[place] for place in kept))


def joined(each: Sequence[Errors]) -> Errors:
    """Errors of several fits; none of none."""
    if not each:
        return Errors(np.empty(0), np.empty(0))
    runs = tuple(run for errors in each for run in errors.runs)
    logarithms, halves = (np.concatenate([getattr(one, name) for one in each]) for name in ("logarithms", "halves"))
    return Errors(logarithms, halves, runs)
