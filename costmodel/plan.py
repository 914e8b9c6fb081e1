"""Finding the best way to run a workload: every valid plan is timed, the ones that fit are ranked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from costmodel.arrangement import Arrangement, Way
from costmodel.candidates import Choices, Meshes, arranged, meshes
from costmodel.compiled import Array
from costmodel.data_parallel import Sharing
from costmodel.errors import InputError
from costmodel.evaluation import Evaluator, Group
from costmodel.hardware.cluster import Cluster
from costmodel.program import Wire
from costmodel.rates import usable_memory
from costmodel.step import MEMORY
from costmodel.subject import Subject
from costmodel.workload import Workload


@dataclass(frozen=True)
class Plan:
    """One way of running a workload, and what it is predicted to cost on the busiest rank.

    Attributes:
        seconds, compute, communication: of the step.
        memory: bytes by kind.
        alone: the plan as the only candidate, for what is computed when it is asked for.
    """

    arrangement: Arrangement
    mesh: Mapping[str, int]
    context_inside: bool
    recompute: bool
    sharing: Sharing
    seconds: float
    compute: float
    communication: float
    memory: Mapping[str, float]
    alone: Group = field(repr=False, compare=False)

    @cached_property
    def length(self) -> int:
        """Tokens of a sequence with those that it is padded with."""
        return int(np.reshape(self.alone.length, -1)[0])

    @property
    def imbalance(self) -> float:
        """Of packed documents, how many times as long as the mean context rank the busiest one computes forward."""
        return self.alone.imbalance

    @cached_property
    def interval(self) -> tuple[float, float]:
        """90 % interval of the seconds, from the ranges and correlations of the numbers that they depend on."""
        low, high = self.alone.interval()
        return min(low, self.seconds), max(high, self.seconds)

    @property
    def fastest(self) -> float:
        """The lower end of the interval."""
        return self.interval[0]

    @property
    def slowest(self) -> float:
        """The upper end of the interval."""
        return self.interval[1]

    @cached_property
    def extrapolated(self) -> dict[str, float]:
        """How many times beyond measured sizes its kernels and messages are, where the profile was fitted to some."""
        return self.alone.extrapolated()

    @cached_property
    def breakdown(self) -> dict[str, float]:
        """Seconds by what is kept busy, as if nothing overlapped."""
        return self.alone.breakdown()

    @cached_property
    def wire(self) -> dict[str, float]:
        """Bytes that a rank sends, by axis."""
        return {axis: float(sent.bytes) for axis, sent in self._sent.items() if sent.bytes}

    @cached_property
    def messages(self) -> dict[str, float]:
        """Messages that a rank sends, by axis."""
        return {axis: float(sent.messages) for axis, sent in self._sent.items() if sent.messages}

    @cached_property
    def _sent(self) -> dict[str, Wire]:
        return self.alone.wire()

    @property
    def exposed(self) -> float:
        """Seconds of communication that no computation hides; differences of rounding are none."""
        exposed = self.seconds - self.compute
        return exposed if exposed > 1e-12 * self.seconds else 0.0

    @property
    def bytes(self) -> float:
        """Bytes of device memory."""
        return sum(self.memory.values())

    @property
    def bottleneck(self) -> str:
        """What is kept busy longest."""
        return max(self.breakdown, key=lambda name: self.breakdown[name])


def speedup(plan: Plan, than: Plan) -> tuple[float, float, float]:
    """How many times faster a plan is than another on the same hardware, and the 90 % interval of that.

    What is uncertain of both, such as the rate of a kernel that both run, cancels; what either takes longer than its
    kernels say does not.

    Raises:
        InputError: for plans on different hardware.
    """
    profiles = [found.alone.evaluator.cluster.profile for found in (plan, than)]
    if profiles[0] != profiles[1]:
        rule = "plans on different hardware have no uncertainty in common"
        raise InputError("than", profiles[1].name, rule, f"give one on {profiles[0].name}")
    if plan is than:
        return 1.0, 1.0, 1.0
    ratios = than.alone.moved_seconds() / plan.alone.moved_seconds()
    ours, theirs = (found.alone.evaluator.composition for found in (plan, than))
    return (float(ratios[0]), *plan.alone.evaluator.uncertainty.interval(ratios, theirs, ours))


@dataclass(frozen=True)
class Ranking:
    """Every candidate of a workload on a cluster.

    Attributes:
        groups: one for each arrangement that is valid for some mesh, with its candidates and their costs.
        refused: reasons why ways of running a layer do not apply.
        capacity: bytes of a device's memory that tensors may use.
    """

    subject: Subject
    workload: Workload
    cluster: Cluster
    groups: tuple[Group, ...]
    refused: Mapping[Way, list[str]]
    capacity: float
    costs: tuple[dict[str, Array], ...] = field(repr=False)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """For each candidate its group and its place there, in order of groups."""
        rows = [
            np.stack([np.full(len(group.choices), number), np.arange(len(group.choices))], 1)
            for number, group in enumerate(self.groups)
        ]
        return np.concatenate(rows) if rows else np.empty((0, 2), np.int64)

    def column(self, name: str) -> Array:
        """One cost of every candidate."""
        return np.concatenate([costs[name] for costs in self.costs]) if self.costs else np.empty(0)

    @cached_property
    def bytes(self) -> Array:
        """Memory of every candidate."""
        return sum((self.column(kind) for kind in MEMORY), np.zeros(len(self.places)))

    @cached_property
    def _seconds(self) -> NDArray[np.float32]:
        """Of every candidate, as far as they tell candidates apart: sums of the same terms may be rounded apart."""
        return self.column("seconds").astype(np.float32)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Candidates that fit, fastest first; of equals, the one with less memory."""
        fits = np.flatnonzero(self.bytes <= self.capacity)
        return fits[np.lexsort((self.bytes[fits], self._seconds[fits]))]

    @cached_property
    def too_large(self) -> NDArray[np.int64]:
        """Candidates that do not fit, the nearest to fitting first."""
        over = np.flatnonzero(self.bytes > self.capacity)
        return over[np.argsort(self.bytes[over])]

    def plan(self, candidate: int) -> Plan:
        """One candidate in full."""
        number, place = self.places[candidate]
        group = self.groups[number]
        one = group.only(place)
        at = {name: float(value[place]) for name, value in self.costs[number].items()}
        choices = one.choices
        return Plan(
            group.arrangement,
            choices.mesh.shape(0),
            bool(choices.mesh.context_inside[0]),
            bool(choices.recompute[0]),
            list(Sharing)[choices.sharing[0]],
            seconds=at["seconds"],
            compute=at["compute"],
            communication=at["communication"],
            memory={kind: at[kind] for kind in MEMORY},
            alone=one,
        )

    def best(self, count: int) -> list[Plan]:
        """The fastest plans that fit."""
        return [self.plan(candidate) for candidate in self.order[:count]]

    def best_of_each(self) -> list[Plan]:
        """The fastest fitting plan of each arrangement, fastest first; then the nearest of those that have none."""
        numbers = self.places[:, 0]
        first = [order[np.unique(numbers[order], return_index=True)[1]] for order in (self.order, self.too_large)]
        fitting, others = first[0], first[1][~np.isin(numbers[first[1]], numbers[first[0]])]
        fitting, others = (
            fitting[np.argsort(self._seconds[fitting], kind="stable")],
            others[np.argsort(self.bytes[others])],
        )
        return [self.plan(candidate) for candidate in np.concatenate([fitting, others])]

    def longest(self, candidate: int) -> int:
        """The longest sequence that the plan's memory would hold, in whole pieces of its mesh; 0 for none."""
        number, place = self.places[candidate]
        return int(self.groups[number].only(place).longest(self.capacity)[0])

    @cached_property
    def longest_of_all(self) -> tuple[int, int]:
        """The longest sequence that some valid plan would hold, and which candidate holds it."""
        most, candidate, before = 0, 0, 0
        for group in self.groups:
            lengths = group.longest(self.capacity, beyond=most)
            if lengths.max() > most:
                most, candidate = int(lengths.max()), before + int(lengths.argmax())
            before += len(group)
        return most, candidate


def evaluator_for(subject: Subject, workload: Workload, cluster: Cluster, beside: Ranking | None) -> Evaluator:
    """That of a workload; one that has been used beside it has traced what they have in common."""
    return beside.groups[0].evaluator.at(workload) if beside else Evaluator(subject, workload, cluster)


def rank(
    subject: Subject,
    workload: Workload,
    cluster: Cluster,
    kernels: tuple[str, ...] | None = None,
    among: Meshes | None = None,
    beside: Ranking | None = None,
) -> Ranking:
    """Time every plan of a workload on a cluster.

    Args:
        kernels: implementations of mixers to choose from; all unless given.
        among: the meshes to choose from; every mesh of all devices unless given.
        beside: a ranking of the same subject on the same cluster, what is traced for which serves both.

    Raises:
        InputError: for a mixer that is not defined under the workload's mask.
    """
    for layer in subject.layers:
        layer.check_mask(workload.causal)
    every = meshes(cluster.devices) if among is None else among
    evaluator = evaluator_for(subject, workload, cluster, beside)
    refused: dict[Way, list[str]] = {}
    groups = tuple(
        Group(evaluator, arrangement, Choices.of(mesh, workload.phase == "train"))
        for arrangement, mesh in arranged(subject, workload, every, kernels, refused)
    )
    costs = tuple(group.costs() for group in groups)
    return Ranking(subject, workload, cluster, groups, refused, usable_memory(cluster), costs)
