"""Every plan that could be: meshes, and which of them an arrangement is valid for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodel.arrangement import Arrangement, Way
from costmodel.compiled import Array
from costmodel.data_parallel import Sharing
from costmodel.dims import Dim
from costmodel.documents import MOST
from costmodel.mixture import Mixture, alike, each, together
from costmodel.registry import JOIN
from costmodel.strategy import Requirement, Situation, Strategy, divides, strategies, takes, whole_pieces
from costmodel.subject import Layer, Subject
from costmodel.workload import Workload

MESH = ("data", "context", "ulysses", "tensor")


@dataclass(frozen=True)
class Meshes:
    """Sizes of the axes of many meshes, and whether the context axis lies inside the Ulysses axis."""

    sizes: dict[str, Array]
    context_inside: NDArray[np.bool_]

    @classmethod
    def one(cls, sizes: Mapping[str, int], context_inside: bool = False) -> Meshes:
        """A single mesh; axes that are not named have 1 rank."""
        return cls({name: np.array([float(sizes.get(name, 1))]) for name in MESH}, np.array([context_inside]))

    def __len__(self) -> int:
        return len(self.context_inside)

    @property
    def replicas(self) -> Array:
        """Ranks that hold the same weights."""
        return self.sizes["data"] * self.sizes["context"] * self.sizes["ulysses"]

    def where(self, keep: NDArray[Any]) -> Meshes:
        """Some of the meshes."""
        return Meshes({name: size[keep] for name, size in self.sizes.items()}, self.context_inside[keep])

    def joined(self, other: Meshes) -> Meshes:
        """These meshes and those."""
        sizes = {name: np.concatenate([size, other.sizes[name]]) for name, size in self.sizes.items()}
        return Meshes(sizes, np.concatenate([self.context_inside, other.context_inside]))

    def shape(self, index: int) -> dict[str, int]:
        """Sizes of one mesh."""
        return {name: int(size[index]) for name, size in self.sizes.items()}


@cache
def factorisations(devices: int, parts: int) -> NDArray[np.int64]:
    """Every way of writing a number as a product of so many ordered factors, one a row.

    >>> factorisations(4, 2).tolist()
    [[1, 4], [2, 2], [4, 1]]
    """
    if parts == 1:
        return np.array([[devices]])
    rows = []
    for first in _divisors(devices):
        rest = factorisations(devices // first, parts - 1)
        rows.append(np.hstack([np.full((len(rest), 1), first), rest]))
    return np.vstack(rows)


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def meshes(devices: int) -> Meshes:
    """Every mesh that uses all devices, with Ulysses inside context."""
    table = factorisations(devices, len(MESH)).astype(np.float64)
    return Meshes({name: table[:, i] for i, name in enumerate(MESH)}, np.zeros(len(table), bool))


@dataclass(frozen=True)
class Choices:
    """Candidates of one arrangement: meshes, each with every choice that is not in its programs.

    Attributes:
        base: the arrangement's meshes.
        row: for each candidate, which of them it has.
    """

    base: Meshes
    row: NDArray[np.int64]
    recompute: NDArray[np.bool_]
    sharing: NDArray[np.int64]

    @classmethod
    def of(cls, mesh: Meshes, train: bool) -> Choices:
        """Every combination; in inference there is nothing to recompute and no state to share out."""
        recompute, sharing = ((False, True), range(len(Sharing))) if train else ((False,), range(1))
        grids = np.meshgrid(np.arange(len(mesh)), recompute, sharing, indexing="ij")
        row, again, share = (grid.ravel() for grid in grids)
        every = cls(mesh, row, again, share)
        return every.where(~(every.replicas == 1) | (share == 0))

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def mesh(self) -> Meshes:
        """The mesh of each candidate."""
        return self.base.where(self.row)

    @property
    def replicas(self) -> Array:
        """Ranks that hold the same weights."""
        return self.base.replicas[self.row]

    @property
    def shares(self) -> dict[Sharing, Array]:
        """For each kind of sharing, 1 for the candidates that share out just that."""
        return {kind: (self.sharing == number).astype(np.float64) for number, kind in enumerate(Sharing)}

    def where(self, keep: NDArray[Any]) -> Choices:
        """Some of the candidates."""
        return Choices(self.base, self.row[keep], self.recompute[keep], self.sharing[keep])


def ways(
    layer: Layer, causal: bool, axes: tuple[str, ...], tensor: bool, kernels: tuple[str, ...] | None
) -> Iterator[Way]:
    """Every way of running a layer with a sequence spread over just these axes by a strategy for its carry.

    Args:
        kernels: implementations to choose from; all those of the mixer unless given.
    """
    if isinstance(layer.mixer, Mixture):
        yield from _ways_together([list(ways(part, causal, axes, tensor, kernels)) for part in layer.mixers_alone])
        return
    for name in strategies.names():
        strategy = strategies.get(name)
        if set(strategy.axes) == set(axes) and issubclass(layer.mixer.carry_for(causal), strategy.carries):
            for kernel in layer.mixer.kernels:
                if kernels is None or kernel in kernels:
                    yield Way(strategy, kernel, tensor)


def _ways_together(options: list[list[Way]]) -> Iterator[Way]:
    """Every way of running a mixture, from those of its parts."""
    for chosen in product(*options):
        used = tuple(way.strategy for way in chosen)
        if alike(used):
            yield Way(together(used), JOIN.join(way.kernel for way in chosen), chosen[0].tensor)


def parts(layer: Layer, way: Way) -> list[tuple[Layer, Way]]:
    """A layer and how it is run; of a mixture, each of its mixers as a layer of its own."""
    mixers, kernels = layer.mixers_alone, way.kernel.split(JOIN)
    used = each(way.strategy, len(mixers))
    return [
        (part, replace(way, strategy=strategy, kernel=kernel))
        for part, strategy, kernel in zip(mixers, used, kernels, strict=True)
    ]


def spreads() -> Iterator[tuple[tuple[str, ...], bool]]:
    """Sets of axes that some strategy spreads the sequence over, without and with tensor parallelism."""
    known = {tuple(sorted(strategies.get(name).axes)) for name in strategies.names()}
    for axes in sorted(known, key=lambda axes: (len(axes), axes)):
        yield axes, False
        yield axes, True


def fitting(axes: tuple[str, ...], tensor: bool, among: Meshes) -> Meshes:
    """The meshes with more than one rank along just these axes (and data); grids of two in both placements."""
    used = {*axes, *(["tensor"] if tensor else [])}
    keep = np.ones(len(among), bool)
    for name in ("context", "ulysses", "tensor"):
        keep &= (among.sizes[name] > 1) == (name in used)
    found = among.where(keep)
    if not {"context", "ulysses"} <= used:
        return found
    return found.joined(Meshes(found.sizes, np.ones(len(found), bool)))


def pieces(layers: Sequence[Layer], ways: Sequence[Way], workload: Workload, mesh: Meshes) -> NDArray[np.int64]:
    """Tokens that each mesh takes a sequence by when layers are run so: it is padded at its end to a multiple of them.

    A cache that is decoded against is not padded.
    """
    found = np.ones(len(mesh), np.int64)
    if workload.phase == "decode":
        return found
    for layer, way in zip(layers, ways, strict=True):
        for requirement, _ in requirements(layer, way, workload, mesh, workload.length):
            if requirement.pieces is not None:
                found = np.lcm(found, np.asarray(requirement.pieces, np.int64))
    return found


def padded(length: Dim, pieces: NDArray[np.int64]) -> NDArray[np.int64]:
    """The least multiples of ``pieces`` that are as long.

    >>> padded(1001, np.array([1, 8])).tolist()
    [1001, 1008]
    """
    return np.asarray(-(-np.asarray(length, np.int64) // pieces) * pieces, np.int64)


def padded_length(layer: Layer, way: Way, workload: Workload, mesh: Mapping[str, int]) -> int:
    """Tokens of a sequence with those that it is padded with, of one layer on one mesh."""
    return int(padded(workload.length, pieces([layer], [way], workload, Meshes.one(mesh)))[0])


def requirements(
    layer: Layer, way: Way, workload: Workload, mesh: Meshes, length: Dim
) -> Iterator[tuple[Requirement, Situation]]:
    """What must hold for each mesh, with what the reasons may name.

    Args:
        length: tokens of the sequence, those that it is padded with included.
    """
    for part, run in parts(layer, way):
        yield from _requirements(part, run, workload, _situation(part, run, workload, mesh, length))


def _requirements(layer: Layer, way: Way, workload: Workload, at: Situation) -> Iterator[tuple[Requirement, Situation]]:
    decodes = at.phase != "decode" or at.causal
    causal = Requirement(decodes, "a token is decoded after those it sees: decoding is causal")
    strategy = takes(way.strategy, at), *way.strategy.requirements(at)
    for requirement in (*strategy, *_documents(layer, way.strategy, at), *_padding(layer, at), causal):
        yield requirement, at
    if layer.mixer.undecoded:
        yield Requirement(at.phase != "decode", layer.mixer.undecoded), at
    memory = layer.mixer.memory(layer.sizes)
    if memory is not None:
        ranks = at.context * (at.ulysses * at.tensor if workload.phase != "decode" else 1)
        spread = "{context} x {ulysses} x {tensor} ranks"
        yield divides(memory.tokens, ranks, f"{memory.tokens} tokens of the memory do not divide over {spread}"), at
    if workload.phase != "decode":
        for requirement in _enough_tokens(layer, at):
            yield requirement, at
    if workload.cached:
        for requirement in _after_cached(layer, way.strategy, at):
            yield requirement, at
    yield divides(at.batch, at.data, "a batch of {batch} does not divide over {data} data-parallel ranks"), at
    if way.tensor:
        yield Requirement(not layer.mixer.indivisible, layer.mixer.indivisible), at
        yield divides(at.heads, at.tensor, "{heads} heads cannot be cut {tensor} ways"), at
        reason = "{kv_heads} KV heads cannot be cut {tensor} ways without repeating them: the cache would grow"
        yield divides(at.kv_heads, at.tensor, reason), at


def _documents(layer: Layer, strategy: Strategy, at: Situation) -> Iterator[Requirement]:
    """Packed documents are kept apart."""
    packed = at.documents > 0
    yield Requirement(not packed or layer.mixer.documents, f"{layer.mixer.name} does not keep documents apart")
    unmasked = f"{layer.mixer.name} does not keep documents apart without a causal mask"
    yield Requirement(not packed or at.carry.documents, unmasked)
    yield Requirement(not packed or strategy.documents, "it does not keep documents apart")
    yield Requirement(
        at.different <= MOST,
        f"{{different}} documents of different lengths are more than the {MOST} that formulas take: give their number",
    )


def _padding(layer: Layer, at: Situation) -> Iterator[Requirement]:
    """Tokens that a sequence is padded with at its end change nothing of the others."""
    whole, told = np.equal(at.length, at.tokens), "{tokens} tokens would be padded to {length} at their end"
    if layer.mixer.per_token(layer.sizes):
        yield Requirement(whole, f"{told}, and {layer.mixer.name} has weights for every token")
    if layer.mixer.unpadded:
        yield Requirement(whole, f"{told}: {layer.mixer.unpadded}")
    apart = at.causal or at.documents > 0
    seen = "which every token would see: there is no causal mask, and the sequence is not packed as --documents 1"
    yield Requirement(whole | apart, f"{told}, {seen}")


def _enough_tokens(layer: Layer, at: Situation) -> Iterator[Requirement]:
    """The tokens of each rank are whole pieces, and as many as the mixer reads at a time; not too many for a kernel."""
    mixer, ranks = layer.mixer, at.context * at.ulysses
    longest = mixer.longest(at.kernel)
    if longest:
        reason = f"the {{kernel}} kernel is for sequences of at most {longest} tokens, not {{length}}"
        yield Requirement(np.less_equal(at.length, longest), reason)
    grain, overlap, shortest = mixer.grain(layer.sizes), mixer.overlap(layer.sizes), mixer.shortest(layer.sizes)
    if grain > 1:
        cut, names = (ranks, "{context} x {ulysses}") if mixer.grain_first else (at.context, "{context}")
        yield whole_pieces(
            at, cut * grain, f"{{length}} tokens do not divide into pieces of {grain} over {names} ranks"
        )
    if mixer.doubled:
        pieces = np.asarray(at.length // (at.context * grain), dtype=np.int64)
        reason = f"{{length}} tokens over {{context}} ranks are not 1, 2, 4, ... pieces of {grain} for each"
        yield Requirement(np.equal(at.context, 1) | np.equal(np.bitwise_and(pieces, pieces - 1), 0), reason)
    segments = mixer.segments(layer.sizes)
    if segments:
        yield divides(at.length, segments, f"{{length}} tokens do not divide into {segments} segments")
        yield divides(segments, at.context, f"{segments} segments do not divide over {{context}} ranks")
    spread = "{length} tokens over {context} x {ulysses} ranks are less than the"
    if overlap:
        apart = at.context if mixer.overlap_mixed else ranks
        enough = np.equal(apart, 1) | np.greater_equal(at.length, apart * overlap)
        yield Requirement(enough, f"{spread} {overlap} that the next reads")
    if shortest > 1:
        yield Requirement(np.greater_equal(at.length, ranks * shortest), f"{spread} {shortest} that each needs")


def _after_cached(layer: Layer, strategy: Strategy, at: Situation) -> Iterator[Requirement]:
    """New tokens may follow on cached ones."""
    yield Requirement(
        layer.mixer.extends, f"{layer.mixer.name} is modelled from its first token on only: no cached ones"
    )
    yield Requirement(at.causal, "cached tokens do not see new ones: a prefill that follows on them is causal")
    yield Requirement(at.window is None, "the cache of a sliding window is not modelled before a prefill")
    yield Requirement(strategy.extends, "it does not spread cached tokens")
    reason = "{cached} cached tokens do not divide over {context} x {ulysses} ranks"
    yield divides(at.cached, at.context * at.ulysses, reason)


def _situation(layer: Layer, way: Way, workload: Workload, mesh: Meshes, length: Dim) -> Situation:
    heads, kv_heads = layer.mixer.query_heads(layer.sizes)
    return Situation(
        carry=layer.mixer.carry_for(workload.causal),
        length=length,
        tokens=workload.length,
        batch=workload.batch,
        heads=heads,
        kv_heads=kv_heads,
        causal=workload.causal,
        window=layer.window,
        kernel=way.kernel,
        reach=layer.mixer.reach(layer.sizes),
        lanes=layer.mixer.lanes(layer.sizes),
        hidden=layer.mixer.hidden(layer.sizes),
        cached=workload.cached,
        documents=len(workload.documents),
        different=len(workload.documents) if len(set(workload.documents)) > 1 else 0,
        phase=workload.phase,
        **{name: mesh.sizes[name] for name in MESH},
    )


def refusals(
    layer: Layer, way: Way, workload: Workload, mesh: Meshes, length: Dim = None
) -> tuple[NDArray[np.bool_], list[str]]:
    """Which meshes a way is valid for, and the reasons why not.

    A reason that rules out every mesh is told alone; otherwise each reason is told of the last mesh it rules out.

    Args:
        length: tokens of the sequence with its padding; that which the layer alone needs unless given.
    """
    valid = np.ones(len(mesh), bool)
    reasons: dict[str, None] = {}
    if length is None:
        length = padded(workload.length, pieces([layer], [way], workload, mesh))
    for requirement, at in requirements(layer, way, workload, mesh, length):
        if np.all(requirement.holds):
            continue
        holds = np.broadcast_to(np.asarray(requirement.holds, bool), valid.shape)
        failing = np.flatnonzero(valid & ~holds)
        if len(failing):
            example = {name: _entry(value, failing[-1]) for name, value in vars(at).items()}
            reason = requirement.reason.format(**example)
            if not holds.any():
                return np.zeros(len(mesh), bool), [reason]
            reasons[reason] = None
        valid &= holds
    return valid, list(reasons)


def _entry(value: object, index: int) -> object:
    if isinstance(value, np.ndarray):
        return int(value[index])
    return value


def arranged(
    subject: Subject,
    workload: Workload,
    among: Meshes,
    kernels: tuple[str, ...] | None,
    refused: dict[Way, list[str]],
) -> Iterator[tuple[Arrangement, Meshes]]:
    """Every arrangement, with the meshes it is valid for, if any; ways that have none are noted in ``refused``."""
    for axes, tensor in spreads():
        mesh = fitting(axes, tensor, among)
        if not len(mesh):
            continue
        options = [list(_valid_ways(layer, axes, tensor, workload, mesh, kernels, refused)) for layer in subject.layers]
        for chosen in product(*options):
            together = _valid_together(subject, chosen, workload, mesh)
            if together.any() and len({way.strategy.spread for way, _ in chosen}) == 1:
                yield Arrangement(tuple(way for way, _ in chosen)), mesh.where(together)


def _valid_together(
    subject: Subject, chosen: Sequence[tuple[Way, NDArray[np.bool_]]], workload: Workload, mesh: Meshes
) -> NDArray[np.bool_]:
    """Meshes that ways of all layers are valid for, on a sequence that is padded for each of them."""
    together: NDArray[np.bool_] = np.logical_and.reduce([valid for _, valid in chosen])
    if len(chosen) == 1 or not together.any():
        return together
    used = tuple(way for way, _ in chosen)
    length = padded(workload.length, pieces(subject.layers, used, workload, mesh))
    if np.all(length == workload.length):
        return together
    for layer, way in zip(subject.layers, used, strict=True):
        together = together & refusals(layer, way, workload, mesh, length)[0]
    return together


def _valid_ways(
    layer: Layer,
    axes: tuple[str, ...],
    tensor: bool,
    workload: Workload,
    mesh: Meshes,
    kernels: tuple[str, ...] | None,
    refused: dict[Way, list[str]],
) -> Iterator[tuple[Way, NDArray[np.bool_]]]:
    for way in ways(layer, workload.causal, axes, tensor, kernels):
        valid, reasons = refusals(layer, way, workload, mesh)
        if valid.any():
            yield way, valid
        else:
            refused[way] = reasons
