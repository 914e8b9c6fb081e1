"""Mixers side by side over lengths, at one model width: what each costs, and where one becomes cheaper than another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

import numpy as np

from costmodel.arrangement import Way
from costmodel.candidates import Choices, arranged, meshes
from costmodel.dims import Dim
from costmodel.errors import InputError
from costmodel.evaluation import Evaluator, Group
from costmodel.expression import Expression, lift, total
from costmodel.hardware.cluster import Cluster
from costmodel.mixer import Mixer, mixers
from costmodel.ops.primitive import Reading
from costmodel.piece import Piece
from costmodel.plan import Plan, Ranking
from costmodel.rates import usable_memory
from costmodel.step import MEMORY
from costmodel.strategy import strategies
from costmodel.subject import at_width
from costmodel.workload import Phase, Workload

#: Lengths looked at in each doubling for a change of order, and parts that an interval with one is cut into.
STEPS = 4
CUTS = 16

#: Known as exact formulas of the length, and predicted for plans.
EXACT = ("flop", "memory", "state")
METRICS = (*EXACT, "time")


@dataclass(frozen=True)
class Setting:
    """What mixers are compared under.

    Attributes:
        width: the model width of all of them.
    """

    cluster: Cluster
    width: int
    phase: Phase = "forward"
    dtype: str = "bf16"


@dataclass(frozen=True)
class Crossing:
    """From ``length`` on, until the next crossing, a mixer is cheaper than another, or is not."""

    length: int
    cheaper: bool


@dataclass(frozen=True)
class Sample:
    """One mixer at one length.

    Attributes:
        flop, memory, state: as ``Contender.exact``; ``state`` is ``None`` where a mixer does not decode.
        classes: the FLOPs by class.
        plan: the fastest on the cluster; ``None`` where nothing is valid or fits.
    """

    mixer: Mixer
    length: int
    flop: Fraction
    memory: Fraction
    state: Fraction | None
    classes: Mapping[str, Fraction]
    plan: Plan | None


@dataclass(frozen=True)
class Comparison:
    """Mixers over lengths, and where each is cheaper than one of them.

    Attributes:
        against: the mixer that the others are compared with.
        samples: by mixer, then by length.
        crossings: by mixer and metric.
        left_out: mixers that could not be compared, and why.
    """

    setting: Setting
    lengths: tuple[int, ...]
    against: str
    samples: Mapping[str, tuple[Sample, ...]]
    crossings: Mapping[str, Mapping[str, tuple[Crossing, ...]]]
    left_out: Mapping[str, str]


def compare(
    names: Sequence[str], against: str, setting: Setting, lengths: Sequence[int], done: Callable[[str], None]
) -> Comparison:
    """Mixers by name, over lengths in rising order.

    Args:
        done: told each mixer's name once it is compared.

    Raises:
        UnknownNameError: for a mixer that does not exist.
        InputError: where ``against`` cannot have the width.
    """
    standard = Contender(against, setting)
    samples: dict[str, tuple[Sample, ...]] = {}
    found: dict[str, dict[str, tuple[Crossing, ...]]] = {}
    left_out: dict[str, str] = {}
    for name in names:
        mixers.get(name)
        try:
            one = standard if name == against else Contender(name, setting)
        except InputError as error:
            left_out[name] = error.rule
        else:
            samples[one.mixer.name] = tuple(one.samples(lengths))
            if one is not standard:
                found[one.mixer.name] = {metric: tuple(crossings(one, standard, metric, lengths)) for metric in METRICS}
        done(name)
    return Comparison(setting, tuple(lengths), standard.mixer.name, samples, found, left_out)


class Contender:
    """One mixer of a comparison: its exact formulas, and its best plan at any length.

    Raises:
        UnknownNameError: for a mixer that does not exist.
        InputError: where the mixer cannot have the width.
    """

    def __init__(self, name: str, setting: Setting) -> None:
        self.setting, self.subject = setting, at_width(name, setting.width)
        self._groups: dict[object, Group] = {}

    @property
    def mixer(self) -> Mixer:
        return self.subject.layers[0].mixer

    def grain(self, metric: str) -> int:
        """What lengths are multiples of: whole chunks, on each device where the sequence may be spread."""
        chunk = self.mixer.grain(self.subject.layers[0].sizes)
        return 2 * self.setting.cluster.devices * chunk if metric == "time" else chunk

    @cached_property
    def exact(self) -> Mapping[str, Expression]:
        """Formulas in L of one sequence that one device has whole, with the mixer's first kernel.

        ``flop``: useful FLOP of all classes; ``memory``: bytes of weights, and of activations at their peak;
        ``state``: bytes that decoding keeps, missing where a mixer does not decode.
        """
        piece = self._traced(self.setting.phase)
        memory = piece.parameters * self._evaluator.widths.model + piece.held.peak
        found = {"flop": total(self.classes.values()), "memory": _of_one_sequence(memory)}
        if self.subject.causal:
            found["state"] = _of_one_sequence(self._traced("prefill").cache)
        return found

    @cached_property
    def classes(self) -> Mapping[str, Expression]:
        """Formulas in L of the useful FLOPs of one sequence, by class."""
        flops = self._traced(self.setting.phase).program.flops(Reading.USEFUL)
        return {kind: _of_one_sequence(count) for kind, count in flops.items()}

    def values(self, metric: str, lengths: Sequence[int]) -> list[Fraction | float | None]:
        """One cost at each length: FLOP, bytes or seconds; ``None`` where there is none."""
        if metric == "time":
            return [seconds if math.isfinite(seconds) else None for seconds in self._fastest(lengths)[0]]
        formula = self.exact.get(metric)
        return [None if formula is None else formula.evaluate({"L": length}) for length in lengths]

    def samples(self, lengths: Sequence[int]) -> Iterator[Sample]:
        """What there is to know at each length."""
        exact = (self.values(metric, lengths) for metric in EXACT)
        for length, flop, memory, state, plan in zip(lengths, *exact, self.plans(lengths), strict=True):
            classes = {kind: formula.evaluate({"L": length}) for kind, formula in self.classes.items()}
            yield Sample(self.mixer, length, flop, memory, state, classes, plan)

    def plans(self, lengths: Sequence[int]) -> list[Plan | None]:
        """The fastest plan that fits on the cluster, at each length; ``None`` if none does, or if none is valid."""
        return [
            None if group is None else self._plan(length, group)
            for length, group in zip(lengths, self._fastest(lengths)[1], strict=True)
        ]

    def _fastest(self, lengths: Sequence[int]) -> tuple[list[float], list[Group | None]]:
        """Seconds at each length, infinite where nothing fits, and the candidate, alone."""
        seconds, found = [math.inf] * len(lengths), [None] * len(lengths)  # type: list[float], list[Group | None]
        for group, places in self._valid(lengths):
            count = len(group)
            many = group.where(np.tile(np.arange(count), len(places)))
            costs = many.costs(np.repeat([float(lengths[place]) for place in places], count))
            held = np.sum([costs[kind] for kind in MEMORY], axis=0)
            timed = np.where(held <= self._capacity, costs["seconds"], math.inf).reshape(-1, count)
            for place, row in zip(places, timed, strict=True):
                best = int(np.argmin(row))
                if row[best] < seconds[place]:
                    seconds[place], found[place] = float(row[best]), group.only(best)
        return seconds, found

    def _valid(self, lengths: Sequence[int]) -> Iterable[tuple[Group, list[int]]]:
        """Candidates that are valid together, and at which of the lengths."""
        among, found = meshes(self.setting.cluster.devices), dict[object, tuple[Group, list[int]]]()
        for place, length in enumerate(lengths):
            workload = self.workload(length, self.setting.phase)
            for arrangement, mesh in arranged(self.subject, workload, among, None, {}):
                key = arrangement, tuple(size.tobytes() for size in mesh.sizes.values()), mesh.context_inside.tobytes()
                if key not in self._groups:
                    choices = Choices.of(mesh, self.setting.phase == "train")
                    self._groups[key] = Group(self._evaluator, arrangement, choices)
                found.setdefault(key, (self._groups[key], []))[1].append(place)
        return found.values()

    def _plan(self, length: int, alone: Group) -> Plan:
        workload, cluster = self.workload(length, self.setting.phase), self.setting.cluster
        group = Group(self._evaluator.at(workload), alone.arrangement, alone.choices)
        return Ranking(self.subject, workload, cluster, (group,), {}, self._capacity, (group.costs(),)).plan(0)

    @property
    def _capacity(self) -> float:
        return usable_memory(self.setting.cluster)

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self.subject, self.workload(1, self.setting.phase), self.setting.cluster)

    def workload(self, length: int, phase: Phase) -> Workload:
        return Workload(length, 1, phase, self.subject.causal, self.setting.dtype)

    def _traced(self, phase: Phase) -> Piece:
        way = Way(strategies.get("whole"), self.mixer.kernels[0], False)
        return Evaluator(self.subject, self.workload(1, phase), self.setting.cluster).layer(0, way).piece


def _of_one_sequence(formula: Dim) -> Expression:
    return lift(formula).substitute({"B": 1, "P_d": 1})


def crossings(one: Contender, other: Contender, metric: str, lengths: Sequence[int]) -> list[Crossing]:
    """Whether one mixer is cheaper than another from the first length on, and where that changes up to the last.

    A crossing is exact, to the multiple of tokens that both mixers need: lengths of each doubling are looked at, and
    where the order changes between two of them, the first length of the new order is found by cutting the interval,
    in exact arithmetic where the costs are formulas. An order that changes and changes back between two lengths
    looked at is not seen.
    """
    step = math.lcm(one.grain(metric), other.grain(metric))

    def cheaper(multiples: Sequence[int]) -> list[bool | None]:
        at = [multiple * step for multiple in multiples]
        both = zip(one.values(metric, at), other.values(metric, at), strict=True)
        return [None if a is None or b is None else a < b for a, b in both]

    tried = _spread(-(-lengths[0] // step), lengths[-1] // step, STEPS)
    known = [(multiple, order) for multiple, order in zip(tried, cheaper(tried), strict=True) if order is not None]
    found = [Crossing(multiple * step, order) for multiple, order in known[:1]]
    for (below, _), (above, order) in ((a, b) for a, b in pairwise(known) if a[1] != b[1]):
        low, high = below, above
        while high - low > 1:
            inner = sorted({low + (high - low) * part // CUTS for part in range(1, CUTS)} - {low})
            changed = [multiple for multiple, now in zip(inner, cheaper(inner), strict=True) if now == order]
            high = min([*changed, high])
            low = max([multiple for multiple in inner if multiple < high], default=low)
        found.append(Crossing(high * step, order))
    return found


def _spread(first: int, last: int, each: int) -> list[int]:
    """Whole numbers from the first to the last, ``each`` in a doubling."""
    if last < first:
        return []
    count = math.ceil(math.log2(last / first) * each)
    return sorted({round(first * (last / first) ** (n / count)) for n in range(count + 1)}) if count else [first]
