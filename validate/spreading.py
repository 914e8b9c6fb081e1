"""Which part of a layer's tokens, and of its cache, each rank has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from costmodel.candidates import Meshes, padded_length, refusals
from costmodel.errors import InputError
from costmodel.mixer import Kept
from costmodel.subject import Layer
from costmodel.workload import Workload
from validate.communication import Transport
from validate.layout import Level, shard, shard_nested
from validate.mesh import Mesh
from validate.task import SEQUENCE, Task


class Spreading:
    """Cuts this rank's part out of whole tensors, and puts whole ones together.

    Args:
        transport: among the ranks that the layer is spread over.
    """

    def __init__(self, layer: Layer, task: Task, transport: Transport) -> None:
        self.layer, self.task, self.transport = layer, task, transport

    @property
    def mesh(self) -> Mesh:
        """The ranks, as this one sees them."""
        return self.transport.mesh

    def shard(self, whole: Tensor, dim: int = 1) -> Tensor:
        """This rank's part of a tensor of all tokens: of its batch at dimension 0, of its sequence at ``dim``.

        The sequence is padded with zeros at its end, to ``padded`` tokens. A token that is decoded is whole on every
        rank that has its sequence: on all along the context axis, unless the strategy deals sequences out.

        Raises:
            ValueError: when the ranks do not divide the batch.
        """
        missing = 0 if self.task.phase == "decode" else self.padded(whole.shape[dim]) - whole.shape[dim]
        if missing:
            shape = *whole.shape[:dim], missing, *whole.shape[dim + 1 :]
            whole = torch.cat([whole, whole.new_zeros(shape)], dim)
        return self._part(self._part(whole, 0, self._dealt), dim, self._spread)

    def padded(self, length: int) -> int:
        """Tokens of a sequence of so many with those that it is padded with: the next multiple of what it is cut into.

        Raises:
            InputError: where it would have to be padded, and may not be.
        """
        workload = self.task.workload(length, self.mesh.ranks_along(["data"]))
        found = padded_length(self.layer, self.task.way, workload, dict(self.mesh.sizes))
        if found != length:
            self._check_strategy(workload)
        return found

    def shard_memory(self, whole: Tensor) -> Tensor:
        """This rank's part [b, n_M, D_M] of a second sequence [B, L_M, D_M]: contiguous, as no mask asks for its order.

        Raises:
            ValueError: when the ranks do not divide the batch or the sequence.
        """
        return self._part(self._part(whole, 0, ["data"]), 1, SEQUENCE, "contiguous")

    def places(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """Which sequences of a batch, and which tokens of a sequence, this rank holds: their numbers, in its order.

        Numbers of ``length`` and above are padding.
        """
        sequences = self._part(torch.arange(batch), 0, self._dealt)
        if self.task.phase == "decode":
            return sequences, torch.tensor([length - 1])
        return sequences, self._part(torch.arange(self.padded(length)), 0, SEQUENCE)

    def shard_cache(self, whole: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """This rank's part of a cache: tensors of the shapes of ``Mixer.cache``, with the batch before them.

        With tokens [B, heads, T, ...] (see ``Kept.tokens``), T is cut over context and Ulysses ranks, heads over tensor
        ranks unless all share one; states are cut by heads alone.
        Along tokens, ranks have one stretch each in turn; where sequences are dealt out, the last stretch, which has
        room for the new token, and that of the rank which has the sequence change places.
        """
        kept = self.layer.mixer.cache(self.block(None).sizes, whole[0].shape[2])
        return tuple(self._cached(x, k) for x, k in zip(whole, kept, strict=True))

    def _cached(self, whole: Tensor, kept: Kept) -> Tensor:
        """This rank's part of one tensor of a cache."""
        part = self._part(whole, 0, ["data"])
        if kept.tokens:
            part = self._stretches(part) if self._deals else self._part(part, 2, SEQUENCE[:2], "contiguous")
        return part if part.shape[1] == kept.shape[0] else self._part(part, 1, ["tensor"])

    def _stretches(self, x: Tensor) -> Tensor:
        """Of sequences [B, H, T, ...] that are dealt out, one stretch each: the last of this rank's own."""
        axis = self.mesh.axes["context"]
        last, found = axis.size - 1, []
        for owner in range(axis.size):
            place = last if owner == axis.rank else owner if axis.rank == last else axis.rank
            found.append(shard(shard(x, 0, axis.size, owner), 2, axis.size, place))
        return torch.cat(found)

    @torch.no_grad()
    def unshard(self, part: Tensor, dim: int = 1, length: int | None = None) -> Tensor:
        """The tensor of all tokens, from every rank's part; every rank calls this. Not differentiable.

        The inverse of ``shard``: all-gathers, counted in ``ops.transport.sent``.

        Args:
            part: as ``shard`` leaves it: sequences at dimension 0, tokens at ``dim``.
            length: tokens of the sequence, where it was padded: what comes after them is left out.
        """
        for name in reversed(self._spread):
            if axis := self.mesh.axes.get(name):
                layout = self._layout(name)
                order = "rank" if layout == "contiguous" else layout
                part = self.transport.all_gather(part, axis, dim, order)
        for name in reversed(self._dealt):
            if axis := self.mesh.axes.get(name):
                part = self.transport.all_gather(part, axis, 0)
        return part if length is None else part.narrow(dim, 0, length)

    @property
    def _spread(self) -> Sequence[str]:
        """Axes that tokens of a sequence are spread over."""
        return () if self.task.phase == "decode" else SEQUENCE

    @property
    def _deals(self) -> bool:
        return self.task.phase == "decode" and self.task.way.strategy.deals

    @property
    def _dealt(self) -> Sequence[str]:
        """Axes that sequences are dealt out over."""
        return ("data", "context") if self._deals else ("data",)

    def _layout(self, axis: str) -> str:
        return self.task.way.strategy.layouts.get(axis, "contiguous")

    def _part(self, whole: Tensor, dim: int, names: Sequence[str], layout: str | None = None) -> Tensor:
        """This rank's part of a dimension that is spread over some axes, in the strategy's layout unless given."""
        axes = [self.mesh.axes[name] for name in names if name in self.mesh.axes]
        levels = [Level(axis.size, layout or self._layout(axis.name)) for axis in axes]
        return shard_nested(whole, dim, levels, [axis.rank for axis in axes])

    def _check_strategy(self, workload: Workload) -> None:
        _, reasons = refusals(self.layer, self.task.way, workload, Meshes.one(dict(self.mesh.sizes)))
        if reasons:
            strategy = self.task.way.strategy.name
            raise InputError("strategy", strategy, f"it does not apply here: {'; '.join(reasons)}")
