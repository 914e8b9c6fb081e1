"""Communication between ranks, every byte of it counted where it is handed to the transport.

Collectives are written here as ring algorithms over point-to-point messages (Thakur, Rabenseifner & Gropp 2005), so
that what a run sends is, byte for byte, what ``costmodel.ops.communication`` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from costmodel.ops.mesh import Axis
from validate.layout import place, shard
from validate.mesh import ORDER, SEQUENCE, Mesh

#: The vocabulary's orders of a spread dimension, as layouts.
LAYOUT = {"rank": "contiguous", "zigzag": "zigzag", "striped": "striped"}


#: Axes, by number in the tags of their messages, of which each has so many at a time at most.
TAGS = (*ORDER, SEQUENCE)
LARGEST = 256


class CommunicationError(RuntimeError):
    """A message that did not come or go in time."""


@dataclass(frozen=True)
class Traffic:
    """What this rank sent along one axis."""

    bytes: int = 0
    messages: int = 0

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes - other.bytes, self.messages - other.messages)


class Pending:
    """Messages on their way: ``receive`` waits for those that come in, ``finish`` for those that go out as well.

    Attributes:
        received: what comes in is written here; not to be read before ``receive``.
    """

    def __init__(self, received: tuple[Tensor, ...], works: Sequence[Any], patience: Patience, sent: Any) -> None:
        self.received, self._patience, self._sent = received, patience, sent
        # A backend that puts several messages into one piece of work has no receiving apart from sending.
        apart = len(works) == 2 * len(received)
        self._incoming = list(works[: len(received)]) if apart else list(works)
        self._outgoing = list(works[len(received) :]) if apart else []

    def receive(self) -> tuple[Tensor, ...]:
        """The tensors from the other rank."""
        self._wait(self._incoming, "from", self._patience.source)
        return self.received

    def finish(self) -> tuple[Tensor, ...]:
        """As ``receive``, once what was sent may be overwritten too."""
        received = self.receive()
        self._wait(self._outgoing, "to", self._patience.target)
        self._sent = None
        return received

    def _wait(self, works: list[Any], direction: str, peer: int) -> None:
        try:
            while works:
                works[-1].wait(self._patience.limit)
                works.pop()
        except RuntimeError as error:
            raise CommunicationError(self._patience.complaint(direction, peer, error)) from error


@dataclass(frozen=True)
class Patience:
    """How long to wait for a message, and what to say when it does not come."""

    limit: timedelta
    rank: int
    source: int
    target: int
    axis: str
    what: str

    def complaint(self, direction: str, peer: int, error: RuntimeError) -> str:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return (
            f"rank {self.rank}: {self.what} along axis '{self.axis}': no message {direction} rank {peer} "
            f"(waited up to {self.limit.total_seconds():g} s): {reason}"
        )


class Transport:
    """Messages and collectives along the axes of a mesh, in the default process group.

    Every rank of a line along the axis calls a collective alike, with tensors of the same shape and dtype. None is
    differentiable.

    Args:
        mesh: the grid, as this rank sees it.
        timeout_s: seconds to wait for any one message.

    Raises (from all of its operations):
        CommunicationError: naming this rank, the step, the axis, and the rank that was waited for.
        ValueError: for an axis that the mesh does not have, or a dimension that its ranks do not divide.

    Attributes:
        sent: bytes and messages that this rank sent so far, by axis.
    """

    def __init__(self, mesh: Mesh, timeout_s: float = 60.0) -> None:
        self.mesh, self.sent = mesh, dict.fromkeys(mesh.axes, Traffic())
        self._limit = timedelta(seconds=timeout_s)

    def exchange(
        self, axis: Axis, hop: int, what: str, outgoing: Sequence[Tensor], incoming: Sequence[Tensor]
    ) -> Pending:
        """Send to the rank ``hop`` places on, and receive as much from the one ``hop`` places before.

        ``incoming`` are contiguous tensors that are written to. Nothing is waited for. Messages of different axes,
        places in the list or sizes cannot be taken for one another: they carry different tags.
        """
        line = self.mesh.line(axis.name)
        target, source = line[(axis.rank + hop) % axis.size], line[(axis.rank - hop) % axis.size]
        sent = [x.contiguous() for x in outgoing]
        operations = [dist.P2POp(dist.irecv, x, source, tag=_tag(axis, i, x)) for i, x in enumerate(incoming)]
        operations += [dist.P2POp(dist.isend, x, target, tag=_tag(axis, i, x)) for i, x in enumerate(sent)]
        patience = Patience(self._limit, self.mesh.rank, source, target, axis.name, what)
        try:
            works = dist.batch_isend_irecv(operations)
        except RuntimeError as error:
            raise CommunicationError(patience.complaint("to", target, error)) from error
        self._count(axis, sum(x.nbytes for x in sent), len(sent))
        return Pending(tuple(incoming), works, patience, sent)

    def neighbours(
        self, axis: Axis, what: str, outgoing: Mapping[int, Sequence[Tensor]], incoming: Mapping[int, Sequence[Tensor]]
    ) -> None:
        """Send to and receive from the ranks before (-1) and after (+1) on a line with two ends, and wait for both.

        Messages beyond an end are left out: nothing is sent, and ``incoming`` stays as it is.
        """
        line = self.mesh.line(axis.name)

        def peer(hop: int) -> int | None:
            place = axis.rank + hop
            return line[place] if 0 <= place < axis.size else None

        works: list[tuple[Any, Patience, str, int]] = []
        for kind, direction, batch in ((dist.irecv, "from", incoming), (dist.isend, "to", outgoing)):
            for hop, tensors in batch.items():
                other = peer(hop)
                if other is None:
                    continue
                heading = hop if kind is dist.isend else -hop  # a message keeps its tag at both ends
                patience = Patience(self._limit, self.mesh.rank, other, other, axis.name, what)
                for i, x in enumerate(tensors):
                    tag = _tag(axis, LARGEST // 2 + 2 * i + (heading > 0), x)
                    works.append((kind(x, other, tag=tag), patience, direction, other))
                if kind is dist.isend:
                    self._count(axis, sum(x.nbytes for x in tensors), len(tensors))
        for work, patience, direction, other in works:
            try:
                work.wait(self._limit)
            except RuntimeError as error:
                raise CommunicationError(patience.complaint(direction, other, error)) from error

    def _count(self, axis: Axis, sent: int, messages: int) -> None:
        before = self.sent.get(axis.name, Traffic())
        self.sent[axis.name] = Traffic(before.bytes + sent, before.messages + messages)

    def shift(
        self, axis: Axis, tensors: Sequence[Tensor], what: str = "ring shift", into: Sequence[Tensor] | None = None
    ) -> Pending:
        """Tensors on their way to the next rank, and as many from the one before; one message each.

        What comes lies in memory as what goes does, in whatever order that is: nothing is copied.

        Args:
            into: what came in an earlier shift and is written over, in place of new memory.
        """
        received = [torch.empty_like(x) for x in tensors] if into is None else into
        pending = self.exchange(axis, 1, what, [_as_it_lies(x) for x in tensors], [_as_it_lies(x) for x in received])
        pending.received = tuple(received)
        return pending

    def all_gather(self, x: Tensor, axis: Axis, dim: int, order: str = "rank") -> Tensor:
        """Every rank's shard [..., n, ...] of ``dim``, as [..., P n, ...]; P - 1 rounds, each one rank on.

        Args:
            order: of the shards in the dimension: ``rank``, ``zigzag`` or ``striped``.

        The result is laid out with ``dim`` outermost, so that a shard of ``"rank"`` order is one stretch of it and is
        received there. A shard of another order is scattered, and goes through a buffer.
        """
        piece = x.movedim(dim, 0).contiguous()
        size, layout = piece.shape[0], LAYOUT[order]
        whole = piece.new_empty((axis.size * size, *piece.shape[1:]))
        place(whole, piece, 0, axis.size, axis.rank, layout)
        for step in range(1, axis.size):
            owner = (axis.rank - step) % axis.size
            landing = shard(whole, 0, axis.size, owner) if order == "rank" else _like(piece)
            self.exchange(axis, 1, f"all-gather, round {step}", [piece], [landing]).finish()
            if order != "rank":
                place(whole, landing, 0, axis.size, owner, layout)
            piece = landing
        return whole.movedim(0, dim)

    def reduce_scatter(self, x: Tensor, axis: Axis, dim: int, order: str = "rank") -> Tensor:
        """This rank's shard [..., n / P, ...] of the sum of [..., n, ...] over ranks, in the dtype of x.

        P - 1 rounds, in each of which a partial sum goes one rank on and grows.
        """

        def part(steps: int) -> Tensor:
            return shard(x, dim, axis.size, (axis.rank - 1 - steps) % axis.size, LAYOUT[order])

        partial = part(0).clone(memory_format=torch.contiguous_format)
        for step in range(1, axis.size):
            what = f"reduce-scatter, round {step}"
            (landing,) = self.exchange(axis, 1, what, [partial], [_like(partial)]).finish()
            partial = landing.add_(part(step))
        return partial

    def all_reduce(self, x: Tensor, axis: Axis) -> Tensor:
        """The sum of x over ranks, of its shape and dtype: a reduce-scatter and an all-gather of the flattened tensor.

        A number of elements that the ranks do not divide is filled up with zeros, up to P - 1 of them, which are sent
        as well.
        """
        flat = x.flatten()
        padded = torch.nn.functional.pad(flat, (0, -flat.numel() % axis.size))
        whole = self.all_gather(self.reduce_scatter(padded, axis, 0), axis, 0)
        if padded.numel() > flat.numel():
            whole = whole[: flat.numel()].clone()  # the zeros are not to be kept as long as the sum
        return whole.view(x.shape)

    def all_to_all(self, x: Tensor, axis: Axis, split: int, concat: int, order: str = "rank") -> Tensor:
        """Dimension ``split`` cut over the ranks, of size n / P, ``concat`` put together, of size P m.

        P - 1 rounds, in each of which a rank sends to one partner.
        """

        def part(rank: int) -> Tensor:
            return shard(x, split, axis.size, rank, LAYOUT[order]).movedim(concat, 0)

        own = part(axis.rank)
        whole = own.new_empty((axis.size * own.shape[0], *own.shape[1:]))
        place(whole, own, 0, axis.size, axis.rank)
        for step in range(1, axis.size):
            landing = shard(whole, 0, axis.size, (axis.rank - step) % axis.size)
            outgoing = part((axis.rank + step) % axis.size)
            self.exchange(axis, step, f"all-to-all, round {step}", [outgoing], [landing]).finish()
        return whole.movedim(0, concat)


def _as_it_lies(x: Tensor) -> Tensor:
    """A tensor with its dimensions in the order of its memory; a copy in their own order where that has gaps."""
    by_memory = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))
    return by_memory if by_memory.is_contiguous() else x.contiguous()


def _tag(axis: Axis, place: int, x: Tensor) -> int:
    """A number below 2^31 that tells the axis, the place among its messages, and the shape of a message.

    Gloo lets a short message pass for a long one, and ends the process at a long one: with its shape in the tag, a
    message of another shape, or in another order, is not taken, and missed.
    """
    code = x.itemsize
    for size in x.shape:
        code = code if size == 1 else code * 31 + size
    code = code * 2654435761 % 2**32 >> 12  # multiplicative hashing (Knuth, TAOCP 3, 6.4), 20 bits
    return (TAGS.index(axis.name) * LARGEST + place) << 20 | code


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
