"""One step of a model: what its pieces cost together, for many candidates at once.

Every number is per rank, and an array with an entry for each candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from costmodel.compiled import Array, Value
from costmodel.data_parallel import Replicas, Sharing
from costmodel.dims import Dim
from costmodel.expression import symbol_named, total
from costmodel.hardware.profile import Profile
from costmodel.ops.communication import Communication
from costmodel.ops.model_ends import AdamStep
from costmodel.ops.primitive import Reading
from costmodel.piece import Piece, named
from costmodel.program import Leaf, Operation, Program, Seq, Wire, operations, total_flops
from costmodel.tensor import Tensor
from costmodel.timing import COLLECTIVES, PARTS, Times, operation_times, times
from costmodel.trace import Tracer, Widths, trace

#: Kinds of memory, in the order in which they are told.
MEMORY = ("parameters", "gradients", "optimizer", "activations", "cache", "working")

#: Parameters that an optimizer step updates.
UPDATED = symbol_named("updated")


@dataclass(frozen=True)
class Costs:
    """Evaluated costs of one piece (``Piece.costs``)."""

    values: Mapping[str, Array]

    def __getitem__(self, name: str) -> Array:
        return self.values[name]

    def times(self, name: str) -> Times:
        """The times of that name."""
        return Times(*(self.values[f"{name} {part}"] for part in PARTS))

    @property
    def weights(self) -> Array:
        """Parameters of all sets of the piece."""
        return self.values["parameters"] * self.values["sets"]

    @property
    def rows(self) -> Array:
        """Those of them that are cut like the sequence."""
        return self.values["rows"] * self.values["sets"]


@dataclass(frozen=True)
class Step:
    """The pieces of a step, evaluated for candidates, and what the candidates choose.

    Attributes:
        train: whether gradients are computed and weights updated; the rest is of no consequence otherwise.
        recompute: 1 where only a layer's input is kept and its forward pass run again before the backward pass.
        shares: for each kind of sharing, 1 where replicas share out just that.
        replicas: ranks that hold the same weights.
        data: ranks that hold the same rows of weights that are cut like the sequence.
        update: seconds of the optimizer for a number of parameters, by ``named("update", ...)``.
    """

    layers: Sequence[Costs]
    ends: Sequence[Costs]
    widths: Widths
    train: bool
    recompute: Array
    shares: Mapping[Sharing, Array]
    replicas: Array
    data: Array

    @property
    def parameters(self) -> Array:
        """Weights on one rank, were none shared out."""
        return _sum([piece.weights for piece in (*self.layers, *self.ends)])

    @property
    def updated(self) -> Array:
        """Parameters whose optimizer state one rank holds."""
        return self.held(Sharing.OPTIMIZER, Sharing.EVERYTHING)

    def held(self, *shared_by: Sharing) -> Array:
        """Parameters of which each rank holds a state, where these kinds of sharing share it out."""
        some = _sum([self.shares[sharing] for sharing in shared_by])
        rows = _sum([piece.rows for piece in (*self.layers, *self.ends)])
        shared: Array = (self.parameters - rows) / self.replicas + rows / self.data
        return (1 - some) * self.parameters + some * shared

    def seconds(self, update: Times) -> Times:
        """Seconds of the step, given those of the optimizer."""
        whole = Times()
        for piece in self.ends:
            whole += (piece.times("forward") + piece.times("backward")) * piece["count"]
        for piece in self.layers:
            if self.train:
                whole += self._layer(piece)
            else:
                whole += piece.times("forward") * piece["count"]
        return whole + update + self._after() if self.train else whole

    def bytes(self) -> dict[str, Array]:
        """Bytes by kind of memory."""
        working = [piece["peak"] - piece["saved"] for piece in self.layers] + [piece["peak"] for piece in self.ends]
        weights, none = self.parameters * self.widths.model, np.zeros_like(self.replicas)
        kinds = dict.fromkeys(MEMORY, none)
        kinds |= {"parameters": weights, "working": reduce(np.maximum, working)}
        kinds["cache"] = _sum([piece["cache"] for piece in self.layers])
        if self.train:
            kinds["parameters"] = kinds["gradients"] = self.held(Sharing.EVERYTHING) * self.widths.model
            kinds["optimizer"] = self.updated * AdamStep.STATE_BYTES
            kinds["activations"] = _sum([piece["count"] * self._kept(piece) for piece in self.layers])
            kinds["working"] = kinds["working"] + self._fetched()
        return kinds

    def _layer(self, piece: Costs) -> Times:
        """All layers of a kind, forward and backward, each beside what is sent for its neighbours.

        The gradients of a shared block are exchanged once, after its last use.
        """
        forward, backward = piece.times("forward"), piece.times("backward")
        fetch, count = self._fetch(piece), piece["count"]
        whole = _neighbours(forward, fetch, count)
        exchange = self._exchange(piece) * (piece["sets"] / count)
        return whole + _neighbours(backward + forward * self.recompute, fetch + exchange, count)

    def _fetch(self, piece: Costs) -> Times:
        """Gathering the weights of a layer before a pass through it."""
        return piece.times("gather") * self.shares[Sharing.EVERYTHING]

    def _exchange(self, piece: Costs) -> Times:
        """Summing the gradients of a layer: whole on each rank, or each its part."""
        whole = self.shares[Sharing.NOTHING]
        return piece.times("reduce") * whole + piece.times("scatter") * (1 - whole)

    def _after(self) -> Times:
        """What replicas exchange of the ends' gradients, and of updated weights."""
        after = Times()
        for piece in self.ends:
            after += self._fetch(piece) * 2 + self._exchange(piece)
        for piece in (*self.layers, *self.ends):
            after += piece.times("gather") * self.shares[Sharing.OPTIMIZER] * piece["sets"]
        return after

    def _kept(self, piece: Costs) -> Array:
        """What a layer keeps for its backward pass: everything, or its input where it is recomputed."""
        kept: Array = self.recompute * piece["given"] + (1 - self.recompute) * piece["saved"]
        return kept

    def _fetched(self) -> Array:
        """Whole weights of two layers, one in use and one on its way, where replicas share them out."""
        largest = reduce(np.maximum, [piece["parameters"] for piece in (*self.layers, *self.ends)])
        whole: Array = 2 * self.widths.model * largest * self.shares[Sharing.EVERYTHING]
        return whole


def _sum(arrays: Sequence[Array]) -> Array:
    return reduce(np.add, arrays)


def _neighbours(work: Times, sent: Times, count: Value) -> Times:
    """Layers one after the other, each beside what is sent for the next one or the last one."""
    every: Times = work.beside(sent) * (count - 1) + work + sent
    return every


def optimizer(widths: Widths, parameters: Dim) -> Seq:
    """The update of so many parameters."""
    gradients = Tensor.new((parameters,), widths.model, "gradient")
    return trace(Tracer(widths, 1), lambda ops, g, _: ops.apply(AdamStep(), g), [gradients], {}).forward


def update_costs(widths: Widths) -> dict[str, Dim]:
    """Seconds of the optimizer for ``UPDATED`` parameters, as formulas."""
    return named("update", times(optimizer(widths, UPDATED)))


@dataclass(frozen=True)
class Parts:
    """Everything that one plan's step runs, and how often: formulas of its sizes."""

    layers: Sequence[Piece]
    ends: Sequence[Piece]
    widths: Widths
    train: bool
    recompute: bool
    sharing: Sharing
    replicas: Replicas
    updated: float

    def __iter__(self) -> Iterator[tuple[Seq, Dim]]:
        yield from self.model(self.recompute)
        if self.train:
            for piece in self.layers:
                yield from self._exchanged(piece, piece.count)
            for piece in self.ends:
                yield from self._exchanged(piece, 1)
            yield optimizer(self.widths, self.updated), 1

    def model(self, recompute: bool) -> Iterator[tuple[Seq, Dim]]:
        """What the model itself runs."""
        for piece in self.layers:
            yield piece.program.forward, piece.count * (2 if self.train and recompute else 1)
            yield piece.program.backward, piece.count
        for piece in self.ends:
            yield piece.program.whole, piece.count

    def _exchanged(self, piece: Piece, uses: Dim) -> Iterator[tuple[Seq, Dim]]:
        """What replicas send of the gradients of all sets of weights, and of weights used so many times."""
        weights = piece.parameters, piece.rows
        if self.sharing is Sharing.NOTHING:
            yield self.replicas.reduce(*weights), piece.sets
            return
        yield self.replicas.scatter(*weights), piece.sets
        yield self.replicas.gather(*weights), 2 * uses if self.sharing is Sharing.EVERYTHING else piece.sets

    def wire(self) -> dict[str, Wire]:
        """What a rank sends, by axis of the mesh."""
        total: dict[str, Wire] = {}
        for part, count in self:
            for axis, sent in Program(part, Seq(), (), ()).wire().items():
                total[axis] = total.get(axis, Wire()) + Wire(sent.bytes * count, sent.messages * count)
        return total

    def flops(self, reading: Reading) -> dict[str, Dim]:
        """FLOP by class; what is recomputed is in it, except in the model reading."""
        total: dict[str, Dim] = {}
        for part, count in self.model(self.recompute and reading is not Reading.MODEL):
            for kind, flops in total_flops(part, reading).items():
                total[kind] = total.get(kind, 0) + flops * count
        return total

    def busy(self) -> Iterator[tuple[str, Dim, Dim]]:
        """Each operation: what it keeps busy (kernel family, or link and collective), for how long, and how often."""
        for part, often in self:
            for operation, count in operations(part):
                if operation.family != "view":
                    yield _label(operation), operation_times(operation).total, count * often

    def sizes(self, profile: Profile) -> Iterator[tuple[str, Dim, tuple[float, float]]]:
        """Sizes of operations that a profile was fitted to: what is kept busy, the size, the least and most measured.

        Messages are held against those of the innermost link.
        """
        distinct = {operation.signature: operation for part, _ in self for operation, _ in operations(part)}
        for operation in distinct.values():
            if isinstance(operation, Leaf) and isinstance(operation.primitive, Communication):
                measured = profile.links[0].measured if profile.links else None
                amounts = {"bytes": operation.primitive.busy_bytes(operation.inputs)}
            elif operation.family in profile.device.kernels:
                measured = profile.device.kernels[operation.family].measured
                flop = operation.flops(Reading.EXECUTED).get("contraction", 0)
                amounts = {"flop": flop, "bytes": total(operation.traffic())}
            else:
                continue
            for name, amount in amounts.items():
                ends = getattr(measured, name, None)
                if ends is not None:
                    yield _label(operation), amount, ends


def _label(operation: Operation) -> str:
    """What an operation keeps busy."""
    if isinstance(operation, Leaf) and isinstance(operation.primitive, Communication):
        return f"{operation.primitive.axis.name} {COLLECTIVES[type(operation.primitive)]}"
    return operation.family
