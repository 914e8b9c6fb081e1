"""One step of a model on one rank, as formulas of lengths, ranks and hardware rates.

The sizes of the model are numbers in them; batch, length, the mesh and the rates are symbols, so that one trace serves
every candidate of one arrangement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

from costmodel.block import Block, FeedForward
from costmodel.data_parallel import Replicas, Sharing
from costmodel.dims import Dim, maximum, minimum, product
from costmodel.expression import Expression, symbol_named
from costmodel.head import embed, logits, loss
from costmodel.liveness import Memory, memory
from costmodel.masks import Mask
from costmodel.mixer import Site
from costmodel.ops.communication import Communication
from costmodel.ops.mesh import Axis
from costmodel.ops.model_ends import AdamStep
from costmodel.ops.primitive import Reading
from costmodel.program import Leaf, Program, Seq, Wire, operations, total_flops
from costmodel.strategy import Strategy
from costmodel.subject import Layer, Subject
from costmodel.symbols import symbol
from costmodel.tensor import Tensor
from costmodel.timing import COLLECTIVES, Times, operation_times, times
from costmodel.trace import Tracer, Widths, trace
from costmodel.workload import Workload

#: Tokens whose logits are held at a time in training.
LOSS_CHUNK = 1024

#: 1 for plans that keep only a layer's input and run its forward pass again before the backward pass, else 0.
RECOMPUTED = symbol_named("chosen:recompute")

AXES = {"data": "P_d", "context": "P_c", "ulysses": "P_u", "tensor": "P_t"}


@dataclass(frozen=True)
class Arrangement:
    """What decides the program of a plan; ``tensor``: more than one tensor-parallel rank."""

    strategy: Strategy
    kernel: str
    tensor: bool

    def axes(self) -> dict[str, Axis]:
        """The axes of the mesh along which a layer communicates."""
        names = [*self.strategy.axes, *(["tensor"] if self.tensor else [])]
        return {name: Axis(name, symbol(AXES[name]), symbol(f"rank_{AXES[name][-1]}")) for name in names}


@dataclass(frozen=True)
class Piece:
    """A program that a step runs, how often, and the weights it has on one rank (in all its runs: ``sets`` of them)."""

    name: str
    program: Program
    count: Dim
    parameters: Dim
    sets: Dim


@dataclass(frozen=True)
class Step:
    """A traced step; every number is per rank.

    Whether a plan recomputes activations, and what its replicas share out, are symbols that are 0 or 1.
    """

    layers: tuple[Piece, ...]
    ends: tuple[Piece, ...]
    cache: Dim
    widths: Widths
    train: bool

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return (*self.layers, *self.ends)

    @property
    def parameters(self) -> Dim:
        """Weights on one rank, were none shared out."""
        return sum((piece.parameters * piece.sets for piece in self.pieces), 0)

    @property
    def replicas(self) -> Replicas:
        return Replicas(symbol("P_d") * symbol("P_c") * symbol("P_u"), self.widths)

    def times(self) -> Times:
        """Seconds of the step."""
        whole = Times()
        for piece in self.ends:
            whole += times(piece.program.whole) * piece.count
        for piece in self.layers:
            forward, backward = times(piece.program.forward), times(piece.program.backward)
            if self.train:
                fetch, exchange = self.replicas.fetch(piece.parameters), self.replicas.exchange(piece.parameters)
                whole += _neighbours(forward, fetch, piece.count)
                whole += _neighbours(backward + forward * RECOMPUTED, fetch + exchange, piece.count)
            else:
                whole += forward * piece.count
        return whole + self._update() if self.train else whole

    def memory(self) -> dict[str, Dim]:
        """Bytes by kind."""
        profiles = [(piece, memory(piece.program)) for piece in self.layers]
        working = [held.peak - held.saved for _, held in profiles]
        working += [memory(piece.program).peak for piece in self.ends]
        weights = self.parameters * self.widths.model
        kinds = {"parameters": weights, "gradients": 0, "optimizer": 0, "activations": 0, "cache": self.cache}
        kinds["working"] = reduce(maximum, working)
        if self.train:
            part = self.replicas.part
            kinds["parameters"] = kinds["gradients"] = weights * part(Sharing.EVERYTHING)
            kinds["optimizer"] = self._updated() * AdamStep.STATE_BYTES
            kinds["activations"] = sum((piece.count * _saved(piece, held) for piece, held in profiles), 0)
            kinds["working"] += self._fetched()
        return kinds

    def wire(self) -> dict[str, Wire]:
        """What a rank sends, by axis of the mesh."""
        total: dict[str, Wire] = {}
        for part, count in self.parts():
            for axis, sent in Program(part, Seq(), (), ()).wire().items():
                total[axis] = total.get(axis, Wire()) + Wire(sent.bytes * count, sent.messages * count)
        return total

    def flops(self, reading: Reading) -> dict[str, Dim]:
        """FLOP by class; what is recomputed is in it, except in the model reading."""
        total: dict[str, Dim] = {}
        for part, count in self.parts(0 if reading is Reading.MODEL else RECOMPUTED):
            for kind, flops in total_flops(part, reading).items():
                total[kind] = total.get(kind, 0) + flops * count
        return total

    def breakdown(self) -> dict[str, Dim]:
        """Seconds by kernel family, or by link and collective, as if nothing overlapped."""
        total: dict[str, Dim] = {}
        for part, count in self.parts():
            for label, seconds in _labelled(part):
                total[label] = total.get(label, 0) + seconds * count
        return total

    def parts(self, recomputed: Dim = RECOMPUTED) -> Iterator[tuple[Seq, Dim]]:
        """Everything the step runs, and how often."""
        for piece in self.layers:
            yield piece.program.forward, piece.count * (1 + (recomputed if self.train else 0))
            yield piece.program.backward, piece.count
        for piece in self.ends:
            yield piece.program.whole, piece.count
        if self.train:
            for piece in self.pieces:
                for sent, count in self.replicas.moves(piece.parameters):
                    yield sent, count * piece.sets
            yield self._optimizer(), 1

    def _fetched(self) -> Dim:
        """Whole weights of two layers, one in use and one on its way, where replicas share them out."""
        largest = reduce(maximum, [piece.parameters for piece in self.pieces])
        return 2 * self.widths.model * largest * Sharing.EVERYTHING.chosen

    def _updated(self) -> Dim:
        """Parameters whose optimizer state one rank holds."""
        return self.parameters * self.replicas.part(Sharing.OPTIMIZER, Sharing.EVERYTHING)

    def _optimizer(self) -> Seq:
        gradients = Tensor.new((self._updated(),), self.widths.model, "gradient")
        return trace(Tracer(self.widths, 1), lambda ops, g, _: ops.apply(AdamStep(), g), [gradients], {}).forward

    def _update(self) -> Times:
        """The optimizer, and what replicas exchange of the ends' gradients and of updated weights."""
        after = times(self._optimizer())
        for piece in self.ends:
            after += self.replicas.fetch(piece.parameters) * 2 + self.replicas.exchange(piece.parameters)
        for piece in self.pieces:
            after += self.replicas.publish(piece.parameters) * piece.sets
        return after


def _neighbours(work: Times, sent: Times, count: Dim) -> Times:
    """Layers one after the other, each beside what is sent for the next one or the last one."""
    total: Times = work.beside(sent) * (count - 1) + work + sent
    return total


def _saved(piece: Piece, held: Memory) -> Dim:
    """What a layer keeps for its backward pass: everything, or its input where it is recomputed."""
    own = sum((tensor.bytes for tensor in piece.program.inputs), 0)
    return RECOMPUTED * own + (1 - RECOMPUTED) * held.saved


def _labelled(part: Seq) -> Iterator[tuple[str, Dim]]:
    """Each operation's seconds under the name of what it keeps busy."""
    for operation, count in operations(part):
        if operation.family == "view":
            continue
        label = operation.family
        if isinstance(operation, Leaf) and isinstance(operation.primitive, Communication):
            label = f"{operation.primitive.axis.name} {COLLECTIVES[type(operation.primitive)]}"
        yield label, operation_times(operation).total * count


def step(subject: Subject, workload: Workload, arrangement: Arrangement, tile: int) -> Step:
    """Trace a step of a subject in one arrangement; ``tile`` is that of the device's fused attention kernel."""
    widths = Widths(workload.width, max(4, workload.width), max(4, workload.width))
    # A decoding kernel packs the queries of a group and is bound by reading the cache: its tile is one query.
    tracer = _StepTracer(subject, workload, arrangement, Tracer(widths, 1 if workload.phase == "decode" else tile))
    return Step(
        tuple(tracer.layer(layer) for layer in subject.layers),
        tuple(tracer.ends()) if subject.vocabulary else (),
        sum((tracer.cache(layer) for layer in subject.layers), 0) if workload.phase in ("prefill", "decode") else 0,
        widths,
        workload.phase == "train",
    )


@dataclass(frozen=True)
class _StepTracer:
    subject: Subject
    workload: Workload
    arrangement: Arrangement
    ops: Tracer

    @property
    def batch(self) -> Dim:
        return symbol("B") / symbol("P_d")

    @property
    def cut(self) -> Dim:
        """Tensor-parallel ranks."""
        return symbol("P_t") if self.arrangement.tensor else 1

    @property
    def spread(self) -> Dim:
        """Ranks that the sequence is spread over."""
        return product(symbol(AXES[name]) for name in self.arrangement.strategy.axes)

    @property
    def tokens(self) -> Dim:
        """Tokens of a sequence on one rank, between the gathers of tensor parallelism."""
        return 1 if self.workload.phase == "decode" else symbol("L") / self.spread

    @property
    def shard(self) -> Dim:
        """Tokens of a sequence on one rank outside of them."""
        return 1 if self.workload.phase == "decode" else self.tokens / self.cut

    def new(self, *shape: Dim, kind: str = "activation") -> Tensor:
        return Tensor.new(shape, self.ops.widths.model, kind)  # type: ignore[arg-type]

    def local(self, layer: Layer) -> dict[str, Dim]:
        """The mixer's sizes on one tensor-parallel rank."""
        return {key: size / self.cut if key in ("H", "H_kv") else size for key, size in layer.sizes.items()}

    def layer(self, layer: Layer) -> Piece:
        sizes = self.local(layer)
        decode = self.workload.phase == "decode"
        mask = Mask() if decode else Mask(self.workload.causal, layer.window)
        site = Site[Tensor](sizes, mask, self.arrangement.kernel, ())  # type: ignore[arg-type]
        block = Block(
            layer.mixer,
            self.arrangement.strategy,
            self.arrangement.axes(),
            site,
            self._feed(layer),
            self.workload.phase,
        )
        weights = {name: self.new(*shape, kind="parameter") for name, shape in block.weights().items()}
        half = layer.mixer.rotary(sizes) / 2
        table = Tensor.new((self.tokens, half), 4, "table")
        past = layer.mixer.cache(sizes, self._kept(layer)) if decode else ()
        cache = tuple(self.new(self.batch, *shape, kind="cache") for shape in past)
        program = trace(
            self.ops,
            lambda ops, x, w: block(ops, x, (table, table), cache, w),
            [self.new(self.batch, self.shard, self.subject.width)],
            weights,
            train=self.workload.phase == "train",
        )
        parameters = sum((w.elements for w in weights.values()), 0)
        return Piece(layer.mixer.name, program, layer.count, parameters, layer.count)

    def _feed(self, layer: Layer) -> FeedForward | None:
        if layer.mlp is None:
            return None
        mlp = layer.mlp
        shared = mlp.shared * mlp.shared_hidden
        return FeedForward(
            mlp.hidden / self.cut, mlp.gated, mlp.experts, mlp.active, shared / self.cut if shared else 0
        )

    def _kept(self, layer: Layer) -> Dim:
        """Tokens of a sequence that one rank keeps."""
        kept = symbol("L") if layer.window is None else minimum(symbol("L"), layer.window)
        return kept / self.spread

    def cache(self, layer: Layer) -> Dim:
        """Bytes of the key-value cache of all layers of a kind."""
        shapes = layer.mixer.cache(self.local(layer), self._kept(layer))
        return sum((product(shape) for shape in shapes), 0) * self.batch * layer.count * self.workload.cache_width

    def ends(self) -> Iterator[Piece]:
        width, vocabulary = self.subject.width, self.subject.vocabulary / self.cut
        table = self.new(vocabulary, width, kind="parameter")
        weights = {
            "final_norm": self.new(width, kind="parameter"),
            "head": self.new(width, vocabulary, kind="parameter"),
        }
        axis = self.arrangement.axes().get("tensor")
        train = self.workload.phase == "train"
        tokens = (self.batch, self.tokens)
        found = trace(self.ops, lambda ops, w: _embedded(ops, table, tokens, axis, train), [], {})
        yield Piece("embedding", found, 1, table.elements, 1)
        if train:
            chunk = self.new(self.batch, LOSS_CHUNK / self.cut, width)
            last = trace(self.ops, lambda ops, x, w: loss(ops, x, w, axis), [chunk], weights, train=True)
            count = self.tokens / LOSS_CHUNK
        else:
            last = trace(self.ops, logits, [self.new(self.batch, 1, width)], weights)
            count = 1
        yield Piece("head", last, count, width + (0 if self.subject.tied else weights["head"].elements), 1)


def _embedded(ops: Tracer, table: Tensor, tokens: tuple[Dim, ...], axis: Axis | None, train: bool) -> Tensor:
    """The lookup, and again as much for its gradient; under tensor parallelism each rank has a part of the rows."""
    x = embed(ops, table, tokens)
    if train:
        embed(ops, table, tokens)
    if axis is None or isinstance(tokens[1], int):
        return x
    return ops.reduce_scatter(x, axis, 1)


def names_of(formulas: Mapping[str, Dim]) -> set[str]:
    """Symbols that some formulas use."""
    return set().union(*(f.symbols() for f in formulas.values() if isinstance(f, Expression)))
