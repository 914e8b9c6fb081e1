"""A profile of the machine that measurements were taken on: every kernel that was timed gets numbers of its own.

Numbers of families, by which kernels that were not timed are predicted, are fitted first, and then those of single
kernels: launch, and the rates of arithmetic and of memory; families of one kernel have more to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from calibrate.block import BLOCKS, Block
from calibrate.cases import case, program
from calibrate.fit import FOLDS, fit, fit_keys, fold
from calibrate.fitted import Fit, Variances
from calibrate.held_out import Errors, checked
from calibrate.least_squares import LEAST
from calibrate.measurement import Measurement
from calibrate.profile_file import Changes, changes, read, rewritten
from calibrate.profile_numbers import HALF_90
from calibrate.store import Environment
from costmodel.hardware.profile import STAND_INS, Family, Kernel, Profile, look_up, placed
from costmodel.hardware.quantity import ALLOWED, Quantity
from costmodel.ops.primitive import Reading
from costmodel.program import Fused, Operation, operations

#: Shapes from which numbers of a single kernel are fitted; with fewer it has those of its family.
ENOUGH = 6

#: One machine, one source: nothing differs between sources, and runs by about a tenth.
ONE_SOURCE = Variances(LEAST, 0.1)

#: Where a fit starts: this much faster than the fastest run.
FASTER = 1.1

#: Operands of which so many bytes move come from memory, on any machine.
FROM_MEMORY = 2.0**26

#: FLOP classes that the matrix unit does not do.
OTHERS = ("elementwise", "special", "reduction", "fft", "sort", "gather")

#: Families of one kernel, with the terms that they may have.
TERMS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("exposed", "ramp"),
    "attention": ("ramp",),
    "attention_backward": ("ramp",),
    "scan": ("exposed",),
}

FAMILIES = get_args(Family)

START = "where the fit starts: the fastest of the measured runs"


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
    def of(cls, row: Measurement, tile: int) -> Part | None:
        """The one kernel of a run, or ``None`` where it is several or a collective."""
        known = [
            one for one, _ in operations(program(row, tile).forward) if one.family not in ("view", "communication")
        ]
        if len(known) != 1:
            return None
        flops = known[0].flops(Reading.EXECUTED)
        others = sum(float(flops.get(kind, 0)) for kind in OTHERS)
        return cls(row, known[0], float(flops.get("contraction", 0)), others, float(sum(known[0].traffic())))


def parts(rows: Iterable[Measurement], tile: int) -> list[Part]:
    """The kernels of runs that are fitted."""
    found = (Part.of(row, tile) for row in rows if row.use == "fit" and case(row).family != "link")
    return [part for part in found if part is not None]


# The profile that a fit starts from -----------------------------------------------------------------------------------


def started_text(text: str, environment: Environment, rows: Sequence[Measurement], name: str) -> str:
    """The text of a profile with this machine's name, and the fastest that was measured as its peaks."""
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
    found = parts(rows, base.device.kernels.attention.tile or 1)
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
    return {key: value for key, value in peaks.items() if value > 0}


def _best(key: str, found: Sequence[Part], amount: Callable[[Part], float]) -> dict[str, float]:
    rates = [amount(part) / part.row.seconds for part in found]
    return {key: max(rates)} if rates else {}


# Blocks of numbers ----------------------------------------------------------------------------------------------------


def family_blocks(found: Sequence[Part]) -> list[Block]:
    """One for each family that was measured."""
    blocks = []
    for family in dict.fromkeys(part.operation.family for part in found):
        names = tuple(dict.fromkeys(part.row.kernel for part in found if part.operation.family == family))
        path = f"device.kernels.{family}"
        keys = [f"{path}.launch_s", f"{path}.compute", f"{path}.memory"]
        keys += ["device.special_op_per_s"] * (family == "elementwise") + ["device.step_s"] * (family == "scan")
        terms = [(f"{path}.{term}",) for term in TERMS.get(family, ())]
        if family == "elementwise":
            terms.append(("device.cache_bytes", "device.cache_bytes_per_s"))
        blocks.append(Block(family, names, (family,), tuple(keys), tuple(terms)))
    return blocks


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


def _start(profile: Profile, own: Sequence[Part]) -> Kernel:
    """A kernel a little faster than the fastest of its runs."""
    device = profile.device
    arithmetic = max(part.others / part.row.seconds for part in own) / device.vector_flop_per_s.value
    memory = max(part.bytes / part.row.seconds for part in own) / device.memory_bytes_per_s.value
    launch = min(part.row.seconds for part in own) / FASTER
    numbers = {"compute": FASTER * arithmetic, "memory": FASTER * memory, "launch_s": launch}
    if isinstance(own[0].operation, Fused):  # a scan
        numbers["exposed"] = 0.5
    return Kernel(**{key: _within(key, value) for key, value in numbers.items()})


def _within(key: str, value: float) -> Quantity:
    allowed = ALLOWED[key]
    return Quantity(float(np.clip(value, allowed.low, allowed.high)), START, "measured")


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
            if key.startswith("device.single.") and isinstance(number := look_up(fit.profile, key), Quantity)
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
    found = parts(own, profile.device.kernels.attention.tile or 1)
    alone, blocks = singles(found), [*family_blocks(found), *(block for block in BLOCKS if block.name == "link")]
    fits, errors, kernels, done = list[Fit](), dict[str, list[Errors]](), dict[str, Kernel](), 0
    for block in blocks:
        tell(block.name, done / (len(blocks) + len(alone)))
        done += 1
        made = fit(block, own, profile, ONE_SOURCE)
        if made is None:
            continue
        profile = made.profile
        fits.append(made)
        rest = [row for row in made.measurements if not _among(row, alone)]
        if rest:
            errors.setdefault("link" if block.name == "link" else block.name, []).append(_only(held_out(made), rest))
    for name, mine in alone.items():
        tell(name, done / (len(blocks) + len(alone)))
        done += 1
        made = _single(name, mine, profile)
        kernels[name] = made.profile.device.single[name]
        fits.append(made)
        errors.setdefault(mine[0].operation.family, []).append(held_out(made))
    return Machine(
        profile, text, fits, {family: joined(each) for family, each in errors.items()}, checked(profile, own)
    )


def _single(name: str, own: Sequence[Part], profile: Profile) -> Fit:
    path = f"device.single.{name}"
    start = _start(profile, own)
    keys = tuple(f"{path}.{key}" for key in start.__struct_fields__ if isinstance(getattr(start, key), Quantity))
    profile = placed(profile, {path: start})
    block = Block(name, tuple(dict.fromkeys(part.row.kernel for part in own)), (path,), keys)
    return fit_keys(block, [part.row for part in own], profile, keys, ONE_SOURCE)


def held_out(made: Fit) -> Errors:
    """Each part of the shapes predicted by a fit to the others; their variances are those of all."""
    errors = []
    for number in range(FOLDS):
        kept = [row for row in made.measurements if fold(row) != number]
        left = [row for row in made.measurements if fold(row) == number]
        if kept and left:
            other = fit_keys(made.block, kept, made.profile, made.keys, made.variances, rounds=2)
            mean, deviation = other.predict(left)
            measured = np.log([row.seconds for row in left])
            errors.append(Errors(mean - measured, HALF_90 * deviation, tuple(left)))
    return joined(errors)


def _among(row: Measurement, alone: Mapping[str, Sequence[Part]]) -> bool:
    return any(part.row is row for own in alone.values() for part in own)


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
