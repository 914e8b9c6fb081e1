"""A grid of ranks: which axes there are, where a rank stands, and who its neighbours are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from costmodel.ops.mesh import Axis

#: Axes of a mesh from the outermost, whose neighbours are far apart, to the innermost, whose ranks follow each other.
ORDER = ("data", "context", "ulysses", "tensor")

#: The same with the context axis within the Ulysses axis.
CONTEXT_INSIDE = ("data", "ulysses", "context", "tensor")

#: The line of all ranks that hold a sequence, over both axes that it is spread over.
SEQUENCE = "sequence"


@dataclass(frozen=True)
class Mesh:
    """The grid as one rank sees it.

    Attributes:
        sizes: ranks along each axis that is there, at least 2, outermost first.
        rank: this rank's number, row-major: the innermost axis varies fastest.

    >>> mesh = Mesh.of({"ulysses": 2, "context": 3}, rank=3)
    >>> mesh.axes["context"], mesh.line("context"), mesh.line("ulysses")
    (Axis(name='context', size=3, rank=1), (1, 3, 5), (2, 3))
    """

    sizes: tuple[tuple[str, int], ...] = ()
    rank: int = 0

    @classmethod
    def of(cls, sizes: Mapping[str, int], rank: int = 0, context_inside: bool = False) -> Mesh:
        """The mesh of these sizes, in any order; axes of size 1 are left out.

        Args:
            context_inside: whether context ranks follow each other, within Ulysses ranks (LoongTrain's context-first
                placement; Gu et al. 2024, arXiv 2406.18485), and not the other way round (head-first). Only where ranks
                stand depends on it, not which tokens the rank of a place has.

        Raises:
            ValueError: for an unknown axis, or a rank outside the grid.
        """
        if unknown := set(sizes) - set(ORDER):
            raise ValueError(f"no axis named {sorted(unknown)}; the axes of a mesh are {', '.join(ORDER)}")
        order = CONTEXT_INSIDE if context_inside else ORDER
        mesh = cls(tuple((name, sizes[name]) for name in order if sizes.get(name, 1) > 1), rank)
        if not 0 <= rank < mesh.ranks:
            raise ValueError(f"rank {rank} is not in a mesh of {mesh.ranks} ranks {dict(mesh.sizes)}")
        return mesh

    @property
    def ranks(self) -> int:
        """Ranks in the whole grid."""
        return math.prod(size for _, size in self.sizes)

    def ranks_along(self, names: Iterable[str]) -> int:
        """Ranks along some axes together."""
        return math.prod(dict(self.sizes).get(name, 1) for name in names)

    @property
    def axes(self) -> dict[str, Axis]:
        """Each axis, with this rank's index along it."""
        return {name: Axis(name, size, self.rank // self._stride(name) % size) for name, size in self.sizes}

    def line(self, name: str) -> tuple[int, ...]:
        """The ranks along an axis through this one, by their index.

        Raises:
            ValueError: when the mesh has no such axis.
        """
        if name == SEQUENCE:
            return self._sequence()
        if name not in dict(self.sizes):
            raise ValueError(f"communication along axis '{name}', which the mesh {dict(self.sizes)} does not have")
        axis, stride = self.axes[name], self._stride(name)
        first = self.rank - axis.rank * stride
        return tuple(first + index * stride for index in range(axis.size))

    def _sequence(self) -> tuple[int, ...]:
        """The ranks that hold one sequence: Ulysses ranks within context ranks, wherever they stand."""
        line = [self.rank]
        for name in ("context", "ulysses"):
            if axis := self.axes.get(name):
                steps = [(index - axis.rank) * self._stride(name) for index in range(axis.size)]
                line = [rank + step for rank in line for step in steps]
        return tuple(line)

    def _stride(self, name: str) -> int:
        names = [axis for axis, _ in self.sizes]
        return math.prod(size for _, size in self.sizes[names.index(name) + 1 :])
