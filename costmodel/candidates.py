"""Every plan that could be: meshes, and which of them an arrangement is valid for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from costmodel.compiled import Array
from costmodel.step import Arrangement
from costmodel.strategy import Requirement, Situation, divides, strategies
from costmodel.subject import Layer, Subject
from costmodel.workload import Workload

MESH = ("data", "context", "ulysses", "tensor")


@dataclass(frozen=True)
class Meshes:
    """Sizes of the axes of many meshes, and whether the context axis lies inside the Ulysses axis."""

    sizes: dict[str, Array]
    context_inside: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.context_inside)

    def where(self, keep: NDArray[np.bool_]) -> Meshes:
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
    for first in (n for n in range(1, devices + 1) if devices % n == 0):
        rest = factorisations(devices // first, parts - 1)
        rows.append(np.hstack([np.full((len(rest), 1), first), rest]))
    return np.vstack(rows)


def meshes(devices: int) -> Meshes:
    """Every mesh that uses all devices, with Ulysses inside context."""
    table = factorisations(devices, len(MESH)).astype(np.float64)
    return Meshes({name: table[:, i] for i, name in enumerate(MESH)}, np.zeros(len(table), bool))


def arrangements(kernels: tuple[str, ...]) -> Iterator[Arrangement]:
    """Every combination of strategy, kernel and tensor parallelism or none, the valid and the invalid."""
    for name in strategies.names():
        for kernel in kernels:
            for tensor in (False, True):
                yield Arrangement(strategies.get(name), kernel, tensor)


def fitting(arrangement: Arrangement, among: Meshes) -> Meshes:
    """The meshes that have exactly the axes of an arrangement; grids of two in both placements."""
    used = {*arrangement.strategy.axes, *(["tensor"] if arrangement.tensor else [])}
    keep = np.ones(len(among), bool)
    for name in ("context", "ulysses", "tensor"):
        keep &= (among.sizes[name] > 1) == (name in used)
    found = among.where(keep)
    if not {"context", "ulysses"} <= used:
        return found
    return found.joined(Meshes(found.sizes, np.ones(len(found), bool)))


def requirements(
    arrangement: Arrangement, subject: Subject, workload: Workload, mesh: Meshes
) -> Iterator[tuple[Requirement, Situation]]:
    """What must hold for each mesh, with what the reasons may name."""
    sizes = mesh.sizes
    for layer in subject.layers:
        at = _situation(arrangement, layer, workload, mesh)
        for requirement in arrangement.strategy.requirements(at):
            yield requirement, at
        yield divides(at.batch, at.data, "{batch} sequences do not divide over {data} data-parallel ranks"), at
        if arrangement.tensor:
            yield divides(at.heads, at.tensor, "{heads} heads cannot be cut {tensor} ways"), at
            reason = "{kv_heads} KV heads cannot be cut {tensor} ways without repeating them: the cache would grow"
            yield divides(at.kv_heads, at.tensor, reason), at
            if workload.phase != "decode":
                yield divides(at.length, at.tensor, "{length} tokens do not divide over {tensor} ranks"), at
            if layer.mlp is not None:
                yield divides(layer.mlp.hidden, sizes["tensor"], "its feed-forward cannot be cut {tensor} ways"), at


def _situation(arrangement: Arrangement, layer: Layer, workload: Workload, mesh: Meshes) -> Situation:
    heads, kv_heads = layer.mixer.query_heads(layer.sizes)
    return Situation(
        length=workload.length,
        batch=workload.batch,
        heads=heads,
        kv_heads=kv_heads,
        causal=workload.causal,
        windowed=layer.window is not None,
        kernel=arrangement.kernel,
        phase=workload.phase,
        **mesh.sizes,
    )


def refusals(
    arrangement: Arrangement, subject: Subject, workload: Workload, mesh: Meshes
) -> tuple[NDArray[np.bool_], list[str]]:
    """Which meshes an arrangement is valid for, and the reasons why not.

    A reason that rules out every mesh is told alone; otherwise each reason is told of the last mesh it rules out.
    """
    valid = np.ones(len(mesh), bool)
    reasons: dict[str, None] = {}
    for requirement, at in requirements(arrangement, subject, workload, mesh):
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
