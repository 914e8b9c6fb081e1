"""What one plan costs that the user chose, and how well a plan uses the devices' matrix units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costmodel.arrangement import Arrangement, Way
from costmodel.candidates import MESH, Choices, Meshes, fitting, meshes, refusals
from costmodel.data_parallel import Sharing
from costmodel.errors import InputError, UnknownNameError
from costmodel.evaluation import Evaluator, Group
from costmodel.hardware.cluster import Cluster
from costmodel.ops.primitive import Reading
from costmodel.plan import Ranking
from costmodel.rates import usable_memory
from costmodel.strategy import strategies
from costmodel.subject import Subject
from costmodel.workload import Workload

#: How far from the number of devices a valid number is looked for.
FAR = 64


@dataclass(frozen=True)
class Chosen:
    """A plan as a user names it.

    Attributes:
        ranks: along the axes of the mesh that are given; one axis that the strategy needs and that is not among them
            takes the devices that are left, all others have 1 rank.
        context_inside: of a grid, whether the ranks of the context axis are the nearer ones.
    """

    strategy: str
    ranks: Mapping[str, int]
    kernel: str = "fused"
    recompute: bool = False
    sharing: Sharing = Sharing.NOTHING
    context_inside: bool = False

    def mesh(self, devices: int) -> dict[str, int]:
        """Ranks along every axis.

        Raises:
            InputError: unless they multiply to the number of devices.
        """
        mesh = {axis: self.ranks.get(axis, 1) for axis in MESH}
        left, rest = divmod(devices, math.prod(mesh.values()))
        open_axes = [axis for axis in strategies.get(self.strategy).axes if axis not in self.ranks]
        if not rest and len(open_axes) == 1:
            mesh[open_axes[0]], left = left, 1
        if rest or left != 1:
            given = " x ".join(f"{axis} {ranks}" for axis, ranks in mesh.items())
            rule = f"has {math.prod(mesh.values())} ranks and the cluster {devices} devices"
            raise InputError("the mesh", given, rule, f"set {', '.join(f'--{axis}' for axis in MESH)} to match")
        return mesh


def estimate(subject: Subject, workload: Workload, cluster: Cluster, chosen: Chosen) -> Ranking:
    """A ranking of the one plan.

    Raises:
        InputError: where the plan is not valid, with the reason and the nearest numbers of devices for which its
            arrangement is.
    """
    mesh = chosen.mesh(cluster.devices)
    way = Way(strategies.get(chosen.strategy), chosen.kernel, mesh["tensor"] > 1)
    _check_axes(way, mesh)
    one = Meshes({axis: np.array([float(ranks)]) for axis, ranks in mesh.items()}, np.array([chosen.context_inside]))
    reasons = [reason for layer in subject.layers for reason in refusals(layer, way, workload, one)[1]]
    if reasons:
        near = _nearest_devices(way, subject, workload, cluster.devices)
        remedy = f"it is valid on {' and '.join(map(str, near))} devices" if near else None
        raise InputError("--strategy", chosen.strategy, "; ".join(dict.fromkeys(reasons)), remedy)
    choices = Choices.of(one, workload.phase == "train")
    wanted = (choices.recompute == chosen.recompute) & (choices.sharing == list(Sharing).index(chosen.sharing))
    if not wanted.any():
        rule = "only training has activations to recompute, and state that replicas share out"
        if workload.phase == "train":
            rule = "the plan has no replicas that could share it out"
        raise InputError("--recompute or --sharing", f"{chosen.recompute}, {chosen.sharing.value}", rule)
    arrangement = Arrangement((way,) * len(subject.layers))
    group = Group(Evaluator(subject, workload, cluster), arrangement, choices.where(wanted))
    costs = group.seconds() | group.bytes()
    return Ranking(subject, workload, cluster, (group,), {}, usable_memory(cluster), (costs,))


def _check_axes(way: Way, mesh: Mapping[str, int]) -> None:
    """A strategy needs ranks along its own axes and knows no others."""
    for axis in ("context", "ulysses"):
        used, ranks = axis in way.strategy.axes, mesh[axis]
        if used and ranks == 1:
            raise InputError(f"--{axis}", ranks, f"{way.strategy.name} needs at least 2 ranks along it")
        if not used and ranks > 1:
            known = [name for name in strategies.names() if axis in strategies.get(name).axes]
            rule = f"{way.strategy.name} has no such axis"
            raise InputError(f"--{axis}", ranks, rule, f"strategies that have: {', '.join(known)}")


def _nearest_devices(way: Way, subject: Subject, workload: Workload, devices: int) -> list[int]:
    """The nearest smaller and the nearest larger number of devices on which a way is valid for all layers."""
    found = []
    for counts in (range(devices - 1, max(0, devices - FAR), -1), range(devices + 1, devices + FAR)):
        for count in counts:
            every = fitting(way.strategy.axes, way.tensor, meshes(count))
            valid = [refusals(layer, way, workload, every)[0] for layer in subject.layers]
            if len(every) and np.logical_and.reduce(valid).any():
                found.append(count)
                break
    return found


def flops(ranking: Ranking, candidate: int) -> dict[Reading, dict[str, float]]:
    """FLOP of the busiest rank by reading and class."""
    number, place = ranking.places[candidate]
    one = ranking.groups[number].only(place)
    return {reading: one.flops(reading) for reading in Reading}


@dataclass(frozen=True)
class Peak:
    """The seconds that a workload would take were its matrix products all that it does, at all devices' dense peak.

    ``model`` counts masked pairs too, as MFU is defined (PaLM, arXiv 2204.02311, appendix B), so that MFU may pass 1
    under a causal mask; ``useful`` counts only those that the mask leaves. Recomputation is in neither.
    """

    model: float
    useful: float

    @classmethod
    def of(cls, ranking: Ranking) -> Peak:
        """Of a ranking's workload on its cluster."""
        cluster, dtype = ranking.cluster, ranking.workload.dtype
        rate = cluster.profile.device.peak(dtype).value * cluster.devices
        alone = _on_one_rank(ranking)
        model, useful = (alone.flops(reading).get("contraction", 0.0) for reading in (Reading.MODEL, Reading.USEFUL))
        return cls(model / rate, useful / rate)


def _on_one_rank(ranking: Ranking) -> Group:
    """The workload on one device, with the first implementation of each mixer."""
    subject, workload = ranking.subject, ranking.workload
    ways = tuple(Way(strategies.get("whole"), layer.mixer.kernels[0], False) for layer in subject.layers)
    choices = Choices.of(meshes(1), workload.phase == "train")
    plain = choices.where(np.flatnonzero(~choices.recompute)[:1])
    return Group(Evaluator(subject, workload, Cluster(ranking.cluster.profile, 1)), Arrangement(ways), plain)


def sharing_named(name: str) -> Sharing:
    """A way of sharing out state by its name.

    Raises:
        UnknownNameError: for a name that is none.
    """
    names = {sharing.value: sharing for sharing in Sharing}
    if name not in names:
        raise UnknownNameError("sharing", name, names)
    return names[name]
