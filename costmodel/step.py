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
from costmodel.expression import Expression
from costmodel.head import embed, logits, loss
from costmodel.liveness import Memory, memory
from costmodel.masks import Mask
from costmodel.mixer import Site
from costmodel.ops.mesh import Axis
from costmodel.ops.model_ends import AdamStep
from costmodel.ops.primitive import Reading
from costmodel.program import Program, Seq, Wire
from costmodel.strategy import Strategy
from costmodel.subject import Layer, Subject
from costmodel.symbols import symbol
from costmodel.tensor import Tensor
from costmodel.timing import Times, times
from costmodel.trace import Tracer, Widths, trace
from costmodel.workload import Workload

#: Tokens whose logits are held at a time in training.
LOSS_CHUNK = 1024

AXES = {"data": "P_d", "context": "P_c", "ulysses": "P_u", "tensor": "P_t"}


@dataclass(frozen=True)
class Arrangement:
    """What a plan is besides the sizes of its mesh.

    Attributes:
        tensor: more than one tensor-parallel rank.
        replicas: more than one rank with the same weights, and what they share out.
    """

    strategy: Strategy
    kernel: str
    tensor: bool
    replicated: bool = False
    sharing: Sharing = Sharing.NOTHING
    recompute: bool = False

    def axes(self) -> dict[str, Axis]:
        """The axes of the mesh along which a layer communicates."""
        names = [*self.strategy.axes, *(["tensor"] if self.tensor else [])]
        return {name: Axis(name, symbol(AXES[name]), symbol(f"rank_{AXES[name][-1]}")) for name in names}


@dataclass(frozen=True)
class Piece:
    """A program that a step runs, how often, and the weights it has on one rank."""

    name: str
    program: Program
    count: Dim
    parameters: Dim


@dataclass(frozen=True)
class Step:
    """A traced step; every number is per rank."""

    arrangement: Arrangement
    layers: tuple[Piece, ...]
    ends: tuple[Piece, ...]
    cache: Dim
    widths: Widths
    train: bool

    def times(self) -> Times:
        """Seconds of the step."""
        whole = sum((times(piece.program.whole) * piece.count for piece in self.ends), Times())
        for piece in self.layers:
            again = self.arrangement.recompute
            forward, backward = times(piece.program.forward), times(piece.program.backward)
            whole += self._beside_replicas(forward, piece, ["fetch"])
            if self.train:
                backward = forward + backward if again else backward
                whole += self._beside_replicas(backward, piece, ["fetch", "exchange"])
        return whole + self._update() if self.train else whole

    def memory(self) -> dict[str, Dim]:
        """Bytes by kind."""
        profiles = [(piece, memory(piece.program)) for piece in self.layers]
        ends = [memory(piece.program).peak for piece in self.ends]
        parameters = self._parameters()
        share = self._replicas().held
        kinds: dict[str, Dim] = {
            "parameters": parameters * self.widths.model / share(Sharing.EVERYTHING),
            "gradients": parameters * self.widths.model / share(Sharing.EVERYTHING) if self.train else 0,
            "optimizer": parameters * AdamStep.STATE_BYTES / share(Sharing.OPTIMIZER) if self.train else 0,
            "activations": sum((piece.count * self._saved(piece, m) for piece, m in profiles), 0),
            "cache": self.cache,
        }
        working = [m.peak - self._saved(piece, m) for piece, m in profiles]
        kinds["working"] = reduce(maximum, [*working, *ends]) + self._fetched()
        return kinds

    def wire(self) -> dict[str, Wire]:
        """What a rank sends, by axis of the mesh."""
        total: dict[str, Wire] = {}
        for part, count in self._parts():
            for axis, sent in Program(part, Seq(), (), ()).wire().items():
                total[axis] = total.get(axis, Wire()) + Wire(sent.bytes * count, sent.messages * count)
        return total

    def flops(self, reading: Reading) -> dict[str, Dim]:
        """FLOP by class; recomputation is in it, except in the model reading."""
        total: dict[str, Dim] = {}
        for part, count in self._parts(recompute=reading is not Reading.MODEL):
            for kind, flops in Program(part, Seq(), (), ()).flops(reading).items():
                total[kind] = total.get(kind, 0) + flops * count
        return total

    def breakdown(self) -> dict[str, Dim]:
        """Seconds by kernel family or link and collective, as if nothing overlapped."""
        total: dict[str, Dim] = {}
        for part, count in self._parts():
            for label, seconds in _labelled(part):
                total[label] = total.get(label, 0) + seconds * count
        return total

    def _parts(self, recompute: bool = True) -> Iterator[tuple[Seq, Dim]]:
        """Everything the step runs, and how often."""
        for piece in (*self.layers, *self.ends):
            again = recompute and self.arrangement.recompute and piece in self.layers
            yield piece.program.forward, piece.count * (2 if again else 1)
            yield piece.program.backward, piece.count
            if self.train and self.arrangement.replicated:
                yield self._between_replicas(piece, ["fetch", "fetch", "exchange", "publish"]), self._copies(piece)
        if self.train:
            yield self._optimizer(), 1

    def _copies(self, piece: Piece) -> Dim:
        """How many sets of a piece's weights there are: a loss computed in chunks has one."""
        return piece.count if piece in self.layers else 1

    def _parameters(self) -> Dim:
        return sum((piece.parameters * self._copies(piece) for piece in (*self.layers, *self.ends)), 0)

    def _saved(self, piece: Piece, held: Memory) -> Dim:
        if self.arrangement.recompute:
            return sum(tensor.bytes for tensor in piece.program.inputs)
        return held.saved

    def _fetched(self) -> Dim:
        """Whole weights of two layers, one in use and one on its way, where replicas share them out."""
        if self.arrangement.sharing is not Sharing.EVERYTHING:
            return 0
        return 2 * self.widths.model * reduce(maximum, [piece.parameters for piece in (*self.layers, *self.ends)])

    def _replicas(self) -> Replicas:
        size = symbol("P_d") * symbol("P_c") * symbol("P_u") if self.arrangement.replicated else 1
        return Replicas(Axis("replicas", size, 0), self.arrangement.sharing)

    def _between_replicas(self, piece: Piece, moves: list[str]) -> Seq:
        """What replicas send of one piece's weights or gradients."""
        replicas = self._replicas()

        def move(ops: Tracer, weights: Tensor, share: Tensor, _: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            given = {"publish": share, "fetch": share, "exchange": weights}
            return tuple(getattr(replicas, name)(ops, given[name]) for name in moves)

        weights = Tensor.new((piece.parameters,), self.widths.model, "parameter")
        share = Tensor.new((piece.parameters / replicas.axis.size,), self.widths.model, "parameter")
        return trace(Tracer(self.widths, 1), move, [weights, share], {}).forward

    def _beside_replicas(self, work: Times, piece: Piece, moves: list[str]) -> Times:
        """Layers one after the other, each beside the exchange of its neighbour's weights or gradients."""
        if not (self.train and self.arrangement.replicated):
            return work * piece.count
        sent = times(self._between_replicas(piece, moves))
        return work.beside(sent) * (piece.count - 1) + work + sent

    def _optimizer(self) -> Seq:
        held = self._parameters() / self._replicas().held(Sharing.OPTIMIZER)
        gradients = Tensor.new((held,), self.widths.model, "gradient")
        return trace(Tracer(self.widths, 1), lambda ops, g, w: ops.apply(AdamStep(), g), [gradients], {}).forward

    def _update(self) -> Times:
        """The optimizer, and what replicas exchange of the ends' gradients and of updated weights."""
        after = times(self._optimizer())
        if self.arrangement.replicated:
            for piece in self.ends:
                after += times(self._between_replicas(piece, ["exchange"]))
            for piece in (*self.layers, *self.ends):
                after += times(self._between_replicas(piece, ["publish"])) * self._copies(piece)
        return after


def _labelled(part: Seq) -> Iterator[tuple[str, Dim]]:
    """Each operation's seconds under the name of what it keeps busy."""
    from costmodel.ops.communication import Communication
    from costmodel.program import Leaf, operations
    from costmodel.timing import COLLECTIVES, operation_times

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
    tracer = _StepTracer(subject, workload, arrangement, Tracer(widths, tile))
    return Step(
        arrangement,
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
            layer.mixer, self.arrangement.strategy, self.arrangement.axes(), site, self._feed(layer), self.workload.phase
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
        return Piece(layer.mixer.name, program, layer.count, sum((w.elements for w in weights.values()), 0))

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
        yield Piece("embedding", found, 1, table.elements)
        if train:
            chunk = self.new(self.batch, LOSS_CHUNK / self.cut, width)
            last = trace(self.ops, lambda ops, x, w: loss(ops, x, w, axis), [chunk], weights, train=True)
            count = self.tokens / LOSS_CHUNK
        else:
            last = trace(self.ops, logits, [self.new(self.batch, 1, width)], weights)
            count = 1
        yield Piece("head", last, count, width + (0 if self.subject.tied else weights["head"].elements))


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
