"""What a traced tensor is: a shape, the width of an element, and the memory it lives in."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from costmodel.dims import Dim, Shape, product

#: What memory is for. Activations come and go within a layer; the others are held throughout.
Kind = Literal["activation", "parameter", "gradient", "cache", "table"]


class Storage:
    """A piece of memory: what it is for, and as many bytes as the first tensor made in it."""

    def __init__(self, kind: Kind, shape: Shape, width: Dim) -> None:
        self.kind, self.shape, self.width = kind, shape, width

    @cached_property
    def bytes(self) -> Dim:
        return product(self.shape) * self.width


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a trace: one dimension an axis, bytes of one element, and the memory it shares with its views."""

    shape: Shape
    width: Dim
    storage: Storage = field(repr=False)

    @classmethod
    def new(cls, shape: Shape, width: Dim, kind: Kind = "activation") -> Tensor:
        """A tensor in memory of its own."""
        return cls(shape, width, Storage(kind, shape, width))

    @cached_property
    def elements(self) -> Dim:
        return product(self.shape)

    @cached_property
    def bytes(self) -> Dim:
        stored = self.storage
        return stored.bytes if self.shape is stored.shape and self.width is stored.width else self.elements * self.width
