"""What one plan costs that the user chose, and how well a plan uses the devices' matrix units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodel.arrangement import Arrangement, Way
from costmodel.candidates import MESH, Choices, Meshes, fitting, meshes, padded, parts, pieces, refusals
from costmodel.data_parallel import Sharing
from costmodel.errors import InputError, UnknownNameError
from costmodel.evaluation import Evaluator, Group
from costmodel.hardware.cluster import Cluster
from costmodel.mixer import Mixer
from costmodel.ops.primitive import Reading
from costmodel.plan import Ranking, evaluator_for
from costmodel.rates import usable_memory
from costmodel.strategy import Strategy, strategies
from costmodel.subject import Layer, Subject
from costmodel.workload import Workload

#: How far from the number of devices a valid number is looked for.
FAR = 64


@dataclass(frozen=True)
class Chosen:
    """A plan as a user names it.

    Attributes:
        strategies, kernels: one for each kind of layer, or one for all; without kernels, each mixer's first.
        ranks: along the axes of the mesh that are given; one axis that the strategy needs and that is not among them
            takes the devices that are left, all others have 1 rank.
        context_inside: of a grid, whether the ranks of the context axis are the nearer ones.
    """

    strategies: tuple[str, ...]
    ranks: Mapping[str, int]
    kernels: tuple[str, ...] = ()
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
        open_axes = [axis for axis in strategies.get(self.strategies[0]).axes if axis not in self.ranks]
        if not rest and len(open_axes) == 1:
            mesh[open_axes[0]], left = left, 1
        if rest or left != 1:
            given = " x ".join(f"{axis} {ranks}" for axis, ranks in mesh.items())
            rule = f"has {math.prod(mesh.values())} ranks and the cluster {devices} devices"
            raise InputError("the mesh", given, rule, f"set {', '.join(f'--{axis}' for axis in MESH)} to match")
        return mesh

    def ways(self, layers: Sequence[Layer], causal: bool, tensor: bool) -> tuple[Way, ...]:
        """The way of each kind of layer.

        Raises:
            UnknownNameError: for a strategy or a kernel that does not exist.
            InputError: for as many of them as there are not kinds of layers, for a strategy that does not know a
                mixer's carry, and for strategies that do not spread the sequence alike.
        """
        names = _for_each("--strategy", self.strategies, layers)
        kernels = _for_each("--kernel", self.kernels or tuple(layer.mixer.kernels[0] for layer in layers), layers)
        ways = tuple(Way(strategies.get(name), kernel, tensor) for name, kernel in zip(names, kernels, strict=True))
        for layer, way in zip(layers, ways, strict=True):
            check_way(layer, way, causal)
        if len({way.strategy.spread for way in ways}) > 1:
            raise InputError("--strategy", ",".join(names), "these do not spread the sequence over the ranks alike")
        return ways


def _for_each(option: str, given: tuple[str, ...], layers: Sequence[Layer]) -> tuple[str, ...]:
    if len(given) not in (1, len(layers)):
        kinds = ", ".join(layer.mixer.name for layer in layers)
        raise InputError(option, ",".join(given), f"must be one, or one for each kind of layer: {kinds}")
    return given if len(given) == len(layers) else given * len(layers)


def check_way(layer: Layer, way: Way, causal: bool) -> None:
    """Whether a layer can be run in a way at all, whatever the sizes.

    Raises:
        InputError: for a mask that the mixer is not defined under, and for a strategy that does not know what
            crosses a cut of the mixer.
        UnknownNameError: for a kernel that the mixer does not have.
    """
    layer.check_mask(causal)
    if way.kernel not in layer.mixer.kernels:
        raise UnknownNameError(f"kernel of {layer.mixer.name}", way.kernel, layer.mixer.kernels)
    for part, run in parts(layer, way):
        _check_carry(part.mixer, run.strategy, causal)


def _check_carry(mixer: Mixer, strategy: Strategy, causal: bool) -> None:
    carry = mixer.carry_for(causal)
    if not issubclass(carry, strategy.carries):
        known = [name for name in strategies.names() if issubclass(carry, strategies.get(name).carries)]
        rule = f"it does not know what crosses a cut of {mixer.name}: {carry.kind}"
        raise InputError("--strategy", strategy.name, rule, f"strategies that do: {', '.join(known)}")


def estimate(
    subject: Subject, workload: Workload, cluster: Cluster, chosen: Chosen, beside: Ranking | None = None
) -> Ranking:
    """A ranking of the one plan.

    Args:
        beside: as for ``rank``.

    Raises:
        InputError: where the plan is not valid, with the reason and the nearest numbers of devices for which its
            arrangement is.
    """
    mesh = chosen.mesh(cluster.devices)
    ways = chosen.ways(subject.layers, workload.causal, mesh["tensor"] > 1)
    for way in ways:
        _check_axes(way, mesh)
    if chosen.context_inside and min(mesh["context"], mesh["ulysses"]) == 1:
        raise InputError("--context-inside", "given", "only a grid of context and Ulysses ranks has two placements")
    one = Meshes.one(mesh, chosen.context_inside)
    layers = list(zip(subject.layers, ways, strict=True))
    length = padded(workload.length, pieces(subject.layers, ways, workload, one))
    reasons = [reason for layer, way in layers for reason in refusals(layer, way, workload, one, length)[1]]
    if reasons:
        near = _nearest_devices(layers, workload, cluster.devices)
        remedy = f"it is valid on {' and '.join(map(str, near))} devices" if near else None
        raise InputError("--strategy", ",".join(chosen.strategies), "; ".join(dict.fromkeys(reasons)), remedy)
    evaluator = evaluator_for(subject, workload, cluster, beside)
    group = Group(evaluator, Arrangement(ways), _choice(one, workload, chosen))
    costs = group.costs()
    return Ranking(subject, workload, cluster, (group,), {}, usable_memory(cluster), (costs,))


def _choice(mesh: Meshes, workload: Workload, chosen: Chosen) -> Choices:
    """The candidate that recomputes and shares out what was chosen."""
    choices = Choices.of(mesh, workload.phase == "train")
    wanted = (choices.recompute == chosen.recompute) & (choices.sharing == list(Sharing).index(chosen.sharing))
    if not wanted.any():
        rule = "only training has activations to recompute, and state that replicas share out"
        if workload.phase == "train":
            rule = "the plan has no replicas that could share it out"
        raise InputError("--recompute or --sharing", f"{chosen.recompute}, {chosen.sharing.value}", rule)
    return choices.where(wanted)


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


def _nearest_devices(layers: Sequence[tuple[Layer, Way]], workload: Workload, devices: int) -> list[int]:
    """The nearest smaller and the nearest larger number of devices on which all layers can be run in their ways."""
    (_, first), found = layers[0], []
    for counts in (range(devices - 1, max(0, devices - FAR), -1), range(devices + 1, devices + FAR)):
        for count in counts:
            every = fitting(first.strategy.axes, first.tensor, meshes(count))
            valid = [refusals(layer, way, workload, every)[0] for layer, way in layers]
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
