"""Finding the best way to run a workload: every valid plan is timed, the ones that fit are ranked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from costmodel.candidates import Meshes, arrangements, fitting, meshes, refusals
from costmodel.compiled import Array, Compiled, Value
from costmodel.data_parallel import Sharing
from costmodel.dims import Dim
from costmodel.expression import lift
from costmodel.hardware.cluster import Cluster
from costmodel.rates import Bound, Rates, is_scalar, strides, usable_memory
from costmodel.step import AXES, Arrangement, Step, step
from costmodel.subject import Subject
from costmodel.workload import LONGEST, Workload

#: Kinds of memory, in the order in which they are told.
MEMORY = ("parameters", "gradients", "optimizer", "activations", "cache", "working")
TIME = ("seconds", "compute", "communication")


@dataclass(frozen=True)
class Choices:
    """The candidates of one arrangement: its meshes, each with every choice that is not in the program."""

    mesh: Meshes
    recompute: NDArray[np.bool_]
    sharing: NDArray[np.int64]

    @classmethod
    def of(cls, mesh: Meshes, train: bool) -> Choices:
        """Every combination; in inference there is nothing to recompute and no state to share out."""
        recompute, sharing = ((False, True), range(len(Sharing))) if train else ((False,), range(1))
        index, again, share = (
            grid.ravel() for grid in np.meshgrid(np.arange(len(mesh)), recompute, sharing, indexing="ij")
        )
        every = cls(mesh.where(index), again, share)
        alone = every.replicas == 1
        return every.where(~alone | (share == 0))

    @property
    def replicas(self) -> Array:
        """Ranks that hold the same weights."""
        sizes = self.mesh.sizes
        return sizes["data"] * sizes["context"] * sizes["ulysses"]

    def __len__(self) -> int:
        return len(self.recompute)

    def where(self, keep: NDArray[np.bool_]) -> Choices:
        """Some of the candidates."""
        return Choices(self.mesh.where(keep), self.recompute[keep], self.sharing[keep])

    def values(self) -> dict[str, Value]:
        """Values of the symbols that plans choose; work that depends on the rank is the last rank's, which has most."""
        found: dict[str, Value] = {AXES[name]: size for name, size in self.mesh.sizes.items()}
        found |= {f"rank_{AXES[name][-1]}": size - 1 for name, size in self.mesh.sizes.items()}
        found["chosen:recompute"] = self.recompute.astype(np.float64)
        for number, sharing in enumerate(Sharing):
            found[f"chosen:{sharing.value}"] = (self.sharing == number).astype(np.float64)
        return found

    def spans(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Sizes of the axes and how far apart their members are; replicas lie outside of tensor parallelism."""
        sizes = dict(self.mesh.sizes)
        ulysses_first = strides(sizes, ("tensor", "ulysses", "context", "data"))
        context_first = strides(sizes, ("tensor", "context", "ulysses", "data"))
        inside = self.mesh.context_inside
        apart = {name: np.where(inside, context_first[name], ulysses_first[name]) for name in sizes}
        return sizes | {"replicas": self.replicas}, apart | {"replicas": sizes["tensor"]}


class Group:
    """The candidates of one arrangement, traced once and evaluated over arrays."""

    def __init__(self, subject: Subject, workload: Workload, arrangement: Arrangement, cluster: Cluster) -> None:
        self.arrangement, self.cluster, self.workload = arrangement, cluster, workload
        tile = cluster.profile.device.kernels["attention"].tile or 1
        self.step: Step = step(subject, workload, arrangement, tile)
        times = self.step.times()
        costs = dict(zip(TIME, (times.total, times.compute, times.communication), strict=True))
        self._costs = self._compiled(costs | self.step.memory())

    def evaluate(
        self, choices: Choices, length: Value | None = None, batch: Value | None = None, bound: Bound = "value"
    ) -> dict[str, Array]:
        """Seconds, and bytes by kind, of every candidate."""
        return self._run(self._costs, choices, length, batch, bound)

    def breakdown(self, choices: Choices) -> dict[str, Array]:
        """Seconds by what is kept busy."""
        return self._run(self._breakdown, choices, None, None, "value")

    def volume(self, choices: Choices) -> dict[str, Array]:
        """Bytes and messages that a rank sends, by axis."""
        return self._run(self._volume, choices, None, None, "value")

    def longest(self, choices: Choices, capacity: float) -> Array:
        """The longest sequence that fits in so many bytes, for every candidate, in whole pieces of its mesh.

        Memory grows with length, so this is a bisection, of all candidates at once.
        """
        sizes = choices.mesh.sizes
        piece = 2 * sizes["context"] * sizes["ulysses"] * sizes["tensor"]
        fits, fails = np.zeros(len(choices)), np.full(len(choices), LONGEST) // piece + 1
        while np.any(fails - fits > 1):
            middle = np.floor((fits + fails) / 2)
            costs = self.evaluate(choices, length=middle * piece)
            held = np.sum([costs[kind] for kind in MEMORY], axis=0) <= capacity
            fits, fails = np.where(held, middle, fits), np.where(held, fails, middle)
        return fits * piece

    @cached_property
    def _breakdown(self) -> Compiled:
        return self._compiled(self.step.breakdown())

    @cached_property
    def _volume(self) -> Compiled:
        wire = self.step.wire()
        sent = {f"{axis} bytes": w.bytes for axis, w in wire.items()}
        return self._compiled(sent | {f"{axis} messages": w.messages for axis, w in wire.items()})

    def _compiled(self, formulas: Mapping[str, Dim]) -> Compiled:
        names = set().union(*(lift(formula).symbols() for formula in formulas.values()))
        return Compiled(formulas, frozenset(name for name in names if is_scalar(name)))

    def _run(
        self, compiled: Compiled, choices: Choices, length: Value | None, batch: Value | None, bound: Bound
    ) -> dict[str, Array]:
        rates = Rates(self.cluster, self.workload.dtype, bound)
        values = choices.values() | {
            "L": float(self.workload.length) if length is None else length,
            "B": float(self.workload.batch) if batch is None else batch,
        }
        values |= rates.device(compiled.symbols) | rates.links(compiled.symbols, *choices.spans())
        results = compiled(values)
        return {name: np.broadcast_to(result, len(choices)) for name, result in results.items()}


@dataclass(frozen=True)
class Plan:
    """One way of running a workload, and what it is predicted to cost on the busiest rank.

    Attributes:
        seconds: of the step; ``fastest`` and ``slowest`` with every rate at that end of its range.
        exposed: seconds of communication that computation does not hide.
        memory: bytes by kind.
        breakdown: seconds by what is kept busy, as if nothing overlapped.
        wire: bytes that a rank sends, by axis.
    """

    arrangement: Arrangement
    mesh: Mapping[str, int]
    context_inside: bool
    recompute: bool
    sharing: Sharing
    seconds: float
    compute: float
    communication: float
    fastest: float
    slowest: float
    memory: Mapping[str, float]
    breakdown: Mapping[str, float]
    wire: Mapping[str, float]
    messages: Mapping[str, float]

    @property
    def exposed(self) -> float:
        return max(0.0, self.seconds - self.compute)

    @property
    def bytes(self) -> float:
        """Bytes of device memory."""
        return sum(self.memory.values())

    @property
    def bottleneck(self) -> str:
        """What is kept busy longest."""
        return max(self.breakdown, key=lambda name: self.breakdown[name])


@dataclass(frozen=True)
class Ranking:
    """Every candidate of a workload on a cluster.

    Attributes:
        groups: one for each arrangement that is valid for some mesh, with its candidates and their costs.
        refused: reasons why arrangements do not apply, by what they were.
        capacity: bytes of a device's memory that tensors may use.
    """

    subject: Subject
    workload: Workload
    cluster: Cluster
    groups: tuple[tuple[Group, Choices], ...]
    refused: Mapping[str, list[str]]
    capacity: float
    costs: tuple[dict[str, Array], ...] = field(repr=False)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """For each candidate its group and its place there, in order of groups."""
        rows = [np.stack([np.full(len(c), g), np.arange(len(c))], 1) for g, (_, c) in enumerate(self.groups)]
        return np.concatenate(rows) if rows else np.empty((0, 2), np.int64)

    def column(self, name: str) -> Array:
        """One cost of every candidate."""
        return np.concatenate([costs[name] for costs in self.costs]) if self.costs else np.empty(0)

    @cached_property
    def bytes(self) -> Array:
        """Memory of every candidate."""
        return sum((self.column(kind) for kind in MEMORY), np.zeros(len(self.places)))

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Candidates that fit, fastest first; of equals, the one with less memory."""
        fits = np.flatnonzero(self.bytes <= self.capacity)
        return fits[np.lexsort((self.bytes[fits], self.column("seconds")[fits]))]

    @cached_property
    def too_large(self) -> NDArray[np.int64]:
        """Candidates that do not fit, the nearest to fitting first."""
        over = np.flatnonzero(self.bytes > self.capacity)
        return over[np.argsort(self.bytes[over])]

    def plan(self, candidate: int) -> Plan:
        """One candidate in full."""
        number, place = self.places[candidate]
        group, choices = self.groups[number]
        one = choices.where(np.arange(len(choices)) == place)
        at = {name: float(value[place]) for name, value in self.costs[number].items()}
        bounds = [float(group.evaluate(one, bound=bound)["seconds"][0]) for bound in ("fast", "slow")]
        volume = {name: float(value[0]) for name, value in group.volume(one).items()}
        return Plan(
            group.arrangement,
            one.mesh.shape(0),
            bool(one.mesh.context_inside[0]),
            bool(one.recompute[0]),
            list(Sharing)[one.sharing[0]],
            at["seconds"],
            at["compute"],
            at["communication"],
            bounds[0],
            bounds[1],
            memory={kind: at[kind] for kind in MEMORY},
            breakdown={name: float(value[0]) for name, value in group.breakdown(one).items()},
            wire={name.removesuffix(" bytes"): size for name, size in volume.items() if name.endswith(" bytes")},
            messages={name.removesuffix(" messages"): n for name, n in volume.items() if name.endswith(" messages")},
        )

    def best(self, count: int) -> list[Plan]:
        """The fastest plans that fit."""
        return [self.plan(candidate) for candidate in self.order[:count]]

    def best_of_each(self) -> list[Plan]:
        """The fastest fitting plan of each arrangement, and for one that has none, its nearest to fitting."""
        chosen = []
        numbers = self.places[:, 0]
        for number in range(len(self.groups)):
            among = [c[numbers[c] == number] for c in (self.order, self.too_large)]
            chosen.append((among[0] if len(among[0]) else among[1])[0])
        return [self.plan(candidate) for candidate in chosen]

    def longest(self, candidate: int) -> int:
        """The longest sequence that the plan's memory would hold, in whole pieces of its mesh; 0 for none."""
        number, place = self.places[candidate]
        group, choices = self.groups[number]
        return int(group.longest(choices.where(np.arange(len(choices)) == place), self.capacity)[0])

    @cached_property
    def longest_of_all(self) -> tuple[int, int]:
        """The longest sequence that some valid plan would hold, and which candidate holds it."""
        lengths = np.concatenate([group.longest(choices, self.capacity) for group, choices in self.groups])
        return int(lengths.max()), int(lengths.argmax())


def rank(
    subject: Subject,
    workload: Workload,
    cluster: Cluster,
    kernels: tuple[str, ...] = ("fused", "vanilla"),
    among: Meshes | None = None,
    known: Mapping[Arrangement, Group] | None = None,
) -> Ranking:
    """Time every plan of a workload on a cluster.

    Args:
        among: the meshes to choose from; every mesh of all devices unless given.
        known: groups that were traced before for the same subject and workload.
    """
    every = meshes(cluster.devices) if among is None else among
    groups, costs = [], []
    refused: dict[str, list[str]] = {}
    for arrangement in arrangements(kernels):
        mesh = fitting(arrangement, every)
        valid, reasons = refusals(arrangement, subject, workload, mesh)
        if reasons and not valid.any():
            refused[describe(arrangement)] = reasons
        if valid.any():
            group = (known or {}).get(arrangement) or Group(subject, workload, arrangement, cluster)
            choices = Choices.of(mesh.where(valid), workload.phase == "train")
            groups.append((group, choices))
            costs.append(group.evaluate(choices))
    return Ranking(subject, workload, cluster, tuple(groups), refused, usable_memory(cluster), tuple(costs))


def describe(arrangement: Arrangement) -> str:
    """An arrangement in words."""
    tensor = " + tensor parallel" if arrangement.tensor else ""
    kernel = "" if arrangement.kernel == "fused" else f" ({arrangement.kernel} kernel)"
    return f"{arrangement.strategy.name}{tensor}{kernel}"
