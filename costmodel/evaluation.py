"""Pieces of a model evaluated over arrays of candidates on a cluster; each piece is traced and compiled once."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from costmodel.arrangement import AXES, Arrangement, Way
from costmodel.candidates import Choices, Meshes, padded, pieces
from costmodel.compiled import Array, Compiled, Tape, Value
from costmodel.data_parallel import Replicas, Sharing
from costmodel.dims import Dim
from costmodel.expression import lift, total
from costmodel.hardware.cluster import Cluster
from costmodel.hardware.quantity import Quantity
from costmodel.masks import Tile
from costmodel.moved_rates import known_rates, moved_rates
from costmodel.ops.primitive import Reading
from costmodel.piece import Piece, Pieces
from costmodel.program import Wire
from costmodel.rates import absent, axis_of, is_link_rate, is_scalar, strides
from costmodel.step import MEMORY, Costs, Parts, Step, update_costs
from costmodel.subject import Subject
from costmodel.symbols import symbol
from costmodel.timing import Times, rate
from costmodel.trace import Tracer, Widths
from costmodel.uncertainty import Uncertainty
from costmodel.workload import LONGEST, Workload

TIME = ("seconds", "compute", "communication")

#: Candidates evaluated at a time.
CHUNK = 16384

#: Less than this part of the least that was measured is rounding: a kernel that has nothing to do.
NOTHING = 1e-9

#: Ranks of which the one with most work is looked for, where documents decide it.
LOOKED_AT = 64

#: What ranks are called in formulas, along the axes that a sequence is spread over.
RANKS = {"rank_c": "context", "rank_u": "ulysses"}

#: Lengths tried at once when the longest that fits is looked for.
TRIED = 64


@dataclass(frozen=True)
class Formulas:
    """Compiled costs of a piece, each part when it is first asked for."""

    piece: Piece
    replicas: Replicas | None
    tape: Tape

    @cached_property
    def times(self) -> Compiled:
        """``Piece.times``."""
        return Compiled(self.piece.times(self.replicas), self.tape)

    @cached_property
    def sizes(self) -> Compiled:
        """``Piece.sizes``."""
        return Compiled(self.piece.sizes(), self.tape)


class Evaluator:
    """Traces and compiles the pieces of a subject as they are asked for, and looks up a cluster's rates."""

    def __init__(self, subject: Subject, workload: Workload, cluster: Cluster) -> None:
        self.subject, self.workload, self.cluster = subject, workload, cluster
        self.widths = Widths(workload.width, max(4, workload.width), workload.gradient_width)
        self.train = workload.phase == "train"
        self.replicas = Replicas(symbol("P_d") * symbol("P_c") * symbol("P_u"), symbol("P_d"), self.widths)
        self.tape = Tape(is_scalar, lambda name: bool(absent(cluster.profile, [name])))
        self._pieces: dict[tuple[Workload, int, Way], Piece] = {}
        self._layers: dict[tuple[Workload, int, Way], Formulas] = {}
        self._ends: dict[tuple[Workload, tuple[str, ...], bool, bool], list[Formulas]] = {}

    def at(self, workload: Workload) -> Evaluator:
        """The same for another workload: what both have in common is traced and compiled once."""
        other = Evaluator(self.subject, workload, self.cluster)
        other.tape, other._pieces, other._layers, other._ends = self.tape, self._pieces, self._layers, self._ends
        return other

    @cached_property
    def _read(self) -> Workload:
        """The workload as far as formulas depend on it: documents have their places, other sequences any length."""
        return self.workload if self.workload.documents else replace(self.workload, length=1, batch=1)

    @cached_property
    def tile(self) -> Tile:
        """Edge of the fused kernel's tile.

        A decoding kernel packs the queries of a group and is bound by reading the cache: its tile is one query.
        """
        return 1 if self.workload.phase == "decode" else self.cluster.profile.device.attention_tile

    @cached_property
    def update(self) -> Compiled:
        """Seconds of the optimizer."""
        return Compiled(update_costs(self.widths), self.tape)

    def layer(self, number: int, way: Way) -> Formulas:
        """One kind of layer, by its place in the subject."""
        key = self._read, number, way
        if key not in self._layers:
            self._layers[key] = self._formulas(self._layer(number, way))
        return self._layers[key]

    def _layer(self, number: int, way: Way) -> Piece:
        """Read once for a forward pass and training."""
        both = self.workload.phase in ("forward", "train")
        key = replace(self._read, phase="train", whole_logits=False) if both else self._read, number, way
        if key not in self._pieces:
            self._pieces[key] = self._reader(way).layer(self.subject.layers[number], way)
        return self._pieces[key].of(self.train)

    def ends(self, arrangement: Arrangement) -> list[Formulas]:
        """Embedding and output head, where there are any."""
        way = arrangement.ways[0]
        key = self._read, way.strategy.axes, way.tensor, way.strategy.deals
        if key not in self._ends:
            found = self._reader(way).ends(way) if self.subject.vocabulary else ()
            self._ends[key] = [self._formulas(piece) for piece in found]
        return self._ends[key]

    def _reader(self, way: Way) -> Pieces:
        ops = Tracer(self.widths, self.tile, fuses=self.cluster.profile.device.fuses)
        return Pieces(self.subject, self.workload, way.strategy.axes, way.tensor, ops)

    def _formulas(self, piece: Piece) -> Formulas:
        return Formulas(piece, self.replicas if self.train else None, self.tape)

    def values(self, mesh: Meshes, symbols: frozenset[str]) -> dict[str, Value]:
        """Values of some symbols, but for L, which depends on the strategy as well.

        Work that depends on the rank is the last rank's, which has most where there are no documents.
        """
        found: dict[str, Value] = {AXES[name]: size for name, size in mesh.sizes.items()}
        found |= {f"rank_{AXES[name][-1]}": size - 1 for name, size in mesh.sizes.items()}
        workload = self.workload
        found |= {"B": float(workload.batch), "T": float(workload.cached)}
        rates = known_rates(self.cluster, workload.dtype)
        found |= {name: rates.device(name) for name in symbols if is_scalar(name)}
        return found | rates.links(symbols, spans(mesh))

    @cached_property
    def uncertainty(self) -> Uncertainty:
        """The uncertain numbers of the cluster's profile."""
        return moved_rates(self.cluster, self.workload.dtype).uncertainty

    @property
    def composition(self) -> tuple[Quantity, ...]:
        """What the profile says of whole runs of such a subject, if it says anything."""
        held = self.cluster.profile.composition
        if held is None:
            return ()
        return (held.model if self.subject.vocabulary else held.layer,)

    def moved_rates(self, mesh: Meshes, symbols: frozenset[str]) -> dict[str, Array]:
        """Rates of one candidate with each profile of ``Uncertainty.moved``, one entry for each."""
        (sizes, strides), moved = spans(mesh), moved_rates(self.cluster, self.workload.dtype)
        found = {name: moved.device(name) for name in symbols if is_scalar(name)}
        for name in filter(is_link_rate, symbols):
            axis = axis_of(name)
            found[name] = moved.link(name, int(sizes[axis][0]), int(strides[axis][0]))
        return found


def spans(mesh: Meshes) -> tuple[dict[str, Array], dict[str, Array]]:
    """Sizes of the axes and how far apart their members are; replicas lie outside of tensor parallelism."""
    sizes = dict(mesh.sizes)
    ulysses_first = strides(sizes, ("tensor", "ulysses", "context", "data"))
    context_first = strides(sizes, ("tensor", "context", "ulysses", "data"))
    inside = mesh.context_inside
    apart = {name: np.where(inside, context_first[name], ulysses_first[name]) for name in sizes}
    both = {"replicas": mesh.replicas, "sequence": sizes["context"] * sizes["ulysses"]}
    return sizes | both, apart | {"replicas": sizes["tensor"], "sequence": sizes["tensor"]}


def _some_ranks(values: Mapping[str, float]) -> Iterator[dict[str, float]]:
    """Places along the axes of a mesh, of which one sends most: the ends, next to them, and the middle."""
    axes = [(name, values[name] + 1) for name in values if name.startswith("rank_")]
    places = [sorted({0.0, min(1.0, size - 1), size // 2, size - 1}) for _, size in axes]
    for chosen in product(*places):
        yield dict(zip((name for name, _ in axes), chosen, strict=True))


@dataclass(frozen=True)
class Group:
    """The candidates of one arrangement.

    Attributes:
        known: values of symbols that were looked up before, for each of the arrangement's meshes.
    """

    evaluator: Evaluator
    arrangement: Arrangement
    choices: Choices
    known: dict[str, Value] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.choices)

    def where(self, places: NDArray[np.int64]) -> Group:
        """Some of the candidates, in this order; one may be there more than once."""
        return replace(self, choices=self.choices.where(places))

    def only(self, place: int) -> Group:
        """One of the candidates."""
        return self.where(np.array([place]))

    @cached_property
    def layers(self) -> list[Formulas]:
        """What each kind of layer runs."""
        return [self.evaluator.layer(number, way) for number, way in enumerate(self.arrangement.ways)]

    @cached_property
    def ends(self) -> list[Formulas]:
        """What the ends run."""
        return self.evaluator.ends(self.arrangement)

    @cached_property
    def pieces(self) -> NDArray[np.int64]:
        """What the sequence is padded to a multiple of, for each of the arrangement's meshes."""
        evaluator = self.evaluator
        return pieces(evaluator.subject.layers, self.arrangement.ways, evaluator.workload, self.choices.base)

    @cached_property
    def busiest(self) -> tuple[dict[str, Value], Value]:
        """Places of the rank that computes longest, and how many times the mean of all, for each of the meshes.

        Without documents it is the last one; with them it depends on where they lie, and ``LOOKED_AT`` ranks are looked
        at, spread over the axes along which ranks do not all compute alike.
        """
        base = self.choices.base
        if not self.evaluator.workload.documents:
            return {"rank_c": base.sizes["context"] - 1}, 1.0
        symbols = frozenset().union(*(formulas.times.symbols for formulas in self.layers))
        known = self.evaluator.values(base, symbols) | {"L": self.length}
        tried, there = self._looked_at(symbols)
        seconds = np.array([self._computing(known | places) for places in tried]) * there
        most = np.argmax(seconds, axis=0)
        mean = seconds.sum(axis=0) / there.sum(axis=0)
        found = {name: np.array([places[name] for places in tried])[most, np.arange(len(base))] for name in tried[0]}
        return found, seconds.max(axis=0) / mean

    def _looked_at(self, symbols: Collection[str]) -> tuple[list[dict[str, Array]], NDArray[np.bool_]]:
        """Places along the axes, for each of the arrangement's meshes, and whether there is such a rank.

        In place of a rank that there is not, the last one.
        """
        sizes = self.choices.base.sizes
        axes = {name: sizes[axis] for name, axis in RANKS.items() if name == "rank_c" or name in symbols}
        number = LOOKED_AT if len(axes) == 1 else math.isqrt(LOOKED_AT)
        lines = {
            name: [np.floor(n * np.maximum(1, size / number)) for n in range(number)] for name, size in axes.items()
        }
        tried = [dict(zip(lines, places, strict=True)) for places in product(*lines.values())]
        there = np.array([np.logical_and.reduce([places[name] < axes[name] for name in axes]) for places in tried])
        return [{name: np.minimum(place, axes[name] - 1) for name, place in places.items()} for places in tried], there

    def _computing(self, values: Mapping[str, Value]) -> Array:
        """Seconds that all layers compute forward, for each of the arrangement's meshes."""
        found = np.zeros(len(self.choices.base))
        for layer, formulas in zip(self.evaluator.subject.layers, self.layers, strict=True):
            given = {name: values[name] for name in formulas.times.symbols}
            found = found + layer.count * formulas.times(given)["forward compute"]
        return found

    @property
    def imbalance(self) -> float:
        """Of one candidate, how many times the mean rank's time to compute forward the busiest one takes."""
        return float(np.broadcast_to(self.busiest[1], len(self.choices.base))[self.choices.row[0]])

    @cached_property
    def length(self) -> Value:
        """Tokens of a sequence with its padding, for each of the arrangement's meshes; one number if alike."""
        found = padded(self.evaluator.workload.length, self.pieces)
        return float(found[0]) if np.all(found == found[0]) else found.astype(np.float64)

    def costs(self, length: Array | None = None) -> dict[str, Array]:
        """Seconds and bytes of every candidate, some at a time so that intermediate arrays stay in cache.

        Args:
            length: tokens of a sequence before it is padded, one for each candidate; the workload's unless given.
        """
        found: list[dict[str, Array]] = []
        for start in range(0, len(self), CHUNK):
            part = np.arange(start, min(start + CHUNK, len(self)))
            some = self.where(part)
            given: dict[str, Value] = {}
            if length is not None:
                given["L"] = padded(length[part], self.pieces[self.choices.row[part]]).astype(np.float64)
            step = some._step(times=True, given=given)
            found.append(some._timed(step, given) | step.bytes())
        return {name: np.concatenate([costs[name] for costs in found]) for name in found[0]}

    def interval(self) -> tuple[float, float]:
        """90 % interval of the seconds of one candidate."""
        return self.evaluator.uncertainty.interval(self.moved_seconds(), self.evaluator.composition)

    def moved_seconds(self) -> Array:
        """Seconds of one candidate with each profile of ``Uncertainty.moved``."""
        evaluator = self.evaluator
        compiled_times = [formulas.times for formulas in (*self.layers, *self.ends)]
        symbols = frozenset().union(*(times.symbols for times in compiled_times), evaluator.update.symbols)
        given = evaluator.moved_rates(self.choices.mesh, symbols)
        many = self.where(np.zeros(len(evaluator.uncertainty.moved), np.int64))
        return many._timed(many._step(times=True, given=given), given)["seconds"]

    def _timed(self, step: Step, given: Mapping[str, Value]) -> dict[str, Array]:
        update = Times()
        if step.train:
            update = Costs(self._run(self.evaluator.update, {**given, "updated": step.updated})).times("update")
        times = step.seconds(update)
        seconds = times.total if self.evaluator.workload.phase == "decode" else times.handed_over
        return dict(zip(TIME, (seconds, times.compute, times.communication), strict=True))

    def bytes(self, length: Array | None = None) -> dict[str, Array]:
        """Bytes of every candidate, by kind of memory; ``length`` as for ``costs``, but with the padding."""
        return self._step(times=False, given={} if length is None else {"L": length}).bytes()

    def longest(self, capacity: float, beyond: float = 0) -> Array:
        """The longest sequence that fits in so many bytes, for every candidate, in whole pieces of its mesh.

        0 where it is not longer than ``beyond``; none is longer than a kernel takes.
        Memory grows with length: the range in which it outgrows the capacity is cut into ``TRIED`` parts, again and
        again, for all candidates at once.
        """
        sizes = self.choices.mesh.sizes
        piece = 2 * sizes["context"] * sizes["ulysses"] * sizes["tensor"]
        layers = zip(self.evaluator.subject.layers, self.arrangement.ways, strict=True)
        most = np.floor(min(layer.mixer.longest(way.kernel) or LONGEST for layer, way in layers) / piece)
        least = np.floor(beyond / piece)
        longer = (least < most) & (self._held((least + 1) * piece) <= capacity)
        fits, fails = least, np.where(longer, most, least) + 1
        many = self.where(np.repeat(np.arange(len(self)), TRIED))
        while np.any(fails - fits > 1):
            steps = np.arange(1, TRIED + 1) / (TRIED + 1)
            tried = np.floor(fits[:, None] + (fails - fits)[:, None] * steps)
            held = many._held((tried * piece[:, None]).ravel()).reshape(tried.shape) <= capacity
            fits = np.maximum(fits, np.max(np.where(held, tried, 0), axis=1))
            fails = np.minimum(fails, np.min(np.where(held, LONGEST, tried), axis=1))
            fails = np.maximum(fails, fits + 1)
        return np.where(longer, np.maximum(fits, least + 1), 0) * piece

    def _held(self, length: Array) -> Array:
        """Bytes of every candidate, with sequences of these lengths."""
        used = self.bytes(length)
        return np.asarray(np.sum([used[kind] for kind in MEMORY], axis=0))

    def breakdown(self) -> dict[str, float]:
        """Seconds of one candidate by what is kept busy, as if nothing overlapped."""
        found: dict[str, list[Dim]] = {}
        launches = self.evaluator.cluster.profile.device.host_launch_s and self.evaluator.workload.phase != "decode"
        for label, seconds, count in self._parts.busy():
            found.setdefault(label, []).append(seconds * count)
            if launches:
                found.setdefault("host", []).append(rate("host") * count)
        return self._evaluated({label: total(each) for label, each in found.items()})

    def extrapolated(self) -> dict[str, float]:
        """How many times beyond the sizes that a profile was fitted to the kernels or messages of one candidate are.

        By what is kept busy; the largest or smallest operation counts. Families that were not fitted are not told of.
        """
        found: dict[str, float] = {}
        sizes = list(self._parts.sizes(self.evaluator.cluster.profile))
        numbers = self._evaluated({str(place): amount for place, (_, amount, _) in enumerate(sizes)})
        for (label, _, (least, most)), number in zip(sizes, numbers.values(), strict=True):
            factor = max(number / most, least / number) if number > least * NOTHING else 1.0
            if factor > 1:
                found[label] = max(found.get(label, 1.0), factor)
        return found

    def wire(self) -> dict[str, Wire]:
        """Bytes and messages that the rank of one candidate sends which sends most, by axis."""
        sent = self._parts.wire()
        symbols = frozenset().union(*(lift(x).symbols() for wire in sent.values() for x in (wire.bytes, wire.messages)))
        values = self._numbers(symbols)
        found: dict[str, list[Wire]] = {axis: [] for axis in sent}
        for ranks in _some_ranks(values):
            at = values | ranks
            for axis, wire in sent.items():
                found[axis].append(Wire(lift(wire.bytes).approximate(at), lift(wire.messages).approximate(at)))
        return {axis: max(each, key=lambda wire: wire.bytes) for axis, each in found.items()}

    def flops(self, reading: Reading) -> dict[str, float]:
        """FLOP of a rank of one candidate, by class."""
        return self._evaluated(self._parts.flops(reading))

    @cached_property
    def _parts(self) -> Parts:
        sharing = list(Sharing)[int(self.choices.sharing[0])]
        layers, ends = ([formulas.piece for formulas in found] for found in (self.layers, self.ends))
        updated = float(self._step(times=False).updated[0])
        return Parts(
            layers,
            ends,
            self.evaluator.widths,
            self.evaluator.train,
            bool(self.choices.recompute[0]),
            sharing,
            self.evaluator.replicas,
            updated,
        )

    def _evaluated(self, formulas: Mapping[str, Dim]) -> dict[str, float]:
        """Formulas of one candidate."""
        return {name: float(value[0]) for name, value in self._run(Compiled(formulas, self.evaluator.tape), {}).items()}

    def _numbers(self, symbols: frozenset[str]) -> dict[str, float]:
        return {name: float(np.reshape(value, -1)[0]) for name, value in self._values(symbols).items()}

    def _values(self, symbols: frozenset[str]) -> dict[str, Value]:
        """Values of symbols for every candidate; each is looked up once for each of the arrangement's meshes."""
        new = symbols - self.known.keys()
        if new:
            self.known.update(self.evaluator.values(self.choices.base, new))
            self.known.update({"L": self.length, **self.busiest[0]})
        values = {name: self.known[name] for name in symbols if name in self.known}
        row = self.choices.row
        return {name: value[row] if isinstance(value, np.ndarray) else value for name, value in values.items()}

    def _step(self, times: bool, given: Mapping[str, Value] = MappingProxyType({})) -> Step:
        """The pieces of the step, with some symbols at other values than the candidates'."""

        def costs(found: list[Formulas]) -> list[Costs]:
            return [Costs(self._piece(formulas, times, given)) for formulas in found]

        return Step(
            costs(self.layers),
            costs(self.ends),
            self.evaluator.widths,
            self.evaluator.train,
            self.choices.recompute.astype(np.float64),
            self.choices.shares,
            self.choices.replicas,
            self.choices.mesh.sizes["data"],
        )

    def _piece(self, formulas: Formulas, times: bool, given: Mapping[str, Value]) -> dict[str, Array]:
        found = self._run(formulas.sizes, given)
        return found | self._run(formulas.times, given) if times else found

    def _run(self, formulas: Compiled, given: Mapping[str, Value]) -> dict[str, Array]:
        known = self._values(formulas.symbols - given.keys())
        found = formulas(known | {name: given[name] for name in formulas.symbols & given.keys()})
        return {name: value if len(value) == len(self) else value.repeat(len(self)) for name, value in found.items()}
