"""The axes of a device mesh."""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.dims import Dim


@dataclass(frozen=True)
class Axis:
    """An axis of the device mesh, as one rank sees it.

    Attributes:
        name: ``data``, ``tensor``, ``ulysses`` or ``context``.
        size: ranks along the axis, at least 2.
        rank: this rank's index along it.
    """

    name: str
    size: Dim
    rank: Dim
