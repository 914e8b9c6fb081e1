"""What decides the programs of a plan, apart from sizes."""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.ops.mesh import Axis
from costmodel.strategy import Strategy
from costmodel.symbols import symbol

#: Axes of the mesh and the symbols of their sizes.
AXES = {"data": "P_d", "context": "P_c", "ulysses": "P_u", "tensor": "P_t"}


@dataclass(frozen=True)
class Way:
    """How one kind of layer is run.

    Attributes:
        kernel: which implementation of the mixer.
        tensor: whether there is more than one tensor-parallel rank.
    """

    strategy: Strategy
    kernel: str
    tensor: bool

    @property
    def axes(self) -> dict[str, Axis]:
        """The axes of the mesh along which a layer communicates."""
        names = [*self.strategy.axes, *(["tensor"] if self.tensor else [])]
        return {name: Axis(name, symbol(AXES[name]), symbol(f"rank_{AXES[name][-1]}")) for name in names}

    def __str__(self) -> str:
        kernel = "" if self.kernel == "fused" else f" ({self.kernel} kernel)"
        return f"{self.strategy.name}{' + tensor parallel' if self.tensor else ''}{kernel}"


@dataclass(frozen=True)
class Arrangement:
    """A way for each kind of layer of a model, in its order; all spread the sequence over the same axes, alike."""

    ways: tuple[Way, ...]

    @property
    def tensor(self) -> bool:
        return self.ways[0].tensor

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """The strategies in use, each once."""
        return tuple(dict.fromkeys(way.strategy for way in self.ways))

    @property
    def kernels(self) -> tuple[str, ...]:
        """The implementations in use, each once."""
        return tuple(dict.fromkeys(way.kernel for way in self.ways))

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the mesh that spread the sequence."""
        return self.ways[0].strategy.axes

    def __str__(self) -> str:
        return " & ".join(dict.fromkeys(str(way) for way in self.ways))
