"""Parts of a model as programs of one rank: a layer run in one way, and the two ends.

Sizes of the model are numbers in them (or symbols, for formulas to read); batch, length, the mesh and hardware rates
are symbols, so that one trace serves every candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from costmodel.arrangement import AXES, Way
from costmodel.block import Share
from costmodel.data_parallel import Replicas
from costmodel.dims import Dim, Shape, product, same
from costmodel.expression import lift
from costmodel.head import embed, logits, loss
from costmodel.liveness import Memory, memory
from costmodel.mixer import OWN, Sizes
from costmodel.ops.mesh import Axis
from costmodel.program import Program
from costmodel.strategy import Strategy
from costmodel.subject import Layer, Subject
from costmodel.symbols import symbol
from costmodel.tensor import Tensor
from costmodel.timing import PARTS, Times, times
from costmodel.trace import Traced, Tracer
from costmodel.workload import Workload

#: Tokens whose logits are held at a time in training, unless those of all are.
LOSS_CHUNK = 1024


@dataclass(frozen=True)
class Piece:
    """A program that a step runs.

    Attributes:
        read: what the program is of, with or without a backward pass.
        count: how often the step runs it.
        parameters: weights of one run, on one rank.
        rows: those of them with a row for each token that are cut like the sequence.
        sets: how many such sets of weights there are; of shared blocks, whose runs each have some weights of their own,
            not a whole number.
        cache: bytes kept for decoding by all runs.
    """

    name: str
    read: Traced
    program: Program
    count: Dim
    parameters: Dim
    sets: Dim
    cache: Dim = 0
    rows: Dim = 0

    def of(self, train: bool) -> Piece:
        """The same with or without a backward pass."""
        return replace(self, program=self.read.program(train))

    @cached_property
    def held(self) -> Memory:
        """Bytes of activations."""
        return memory(self.program)

    @property
    def given(self) -> Dim:
        """Bytes of its input; a second sequence is there for all layers."""
        return sum((tensor.bytes for tensor in self.program.inputs[:1]), 0)

    def sizes(self) -> dict[str, Dim]:
        """Formulas of counts, parameters and bytes, by name."""
        counted = {"count": self.count, "sets": self.sets, "cache": self.cache}
        counted |= {"parameters": self.parameters, "rows": self.rows}
        return counted | {"saved": self.held.saved, "peak": self.held.peak, "given": self.given}

    def times(self, replicas: Replicas | None) -> dict[str, Dim]:
        """Formulas of seconds, by name; with ``replicas``, also of exchanging its weights."""
        found = named("forward", _forward_seconds(self.read)) | named("backward", times(self.program.backward))
        if replicas is not None:
            for name in ("gather", "reduce", "scatter"):
                found |= named(name, times(getattr(replicas, name)(self.parameters, self.rows)))
        return found


@lru_cache(maxsize=128)
def _forward_seconds(read: Traced) -> Times:
    """Found once for inference and training, which have it in common."""
    return times(read.forward.forward)


def named(name: str, seconds: Times) -> dict[str, Dim]:
    """Times as separate formulas."""
    return {f"{name} {part}": value for part, value in zip(PARTS, seconds.parts, strict=True)}


@dataclass(frozen=True)
class Pieces:
    """Traces the parts of a subject.

    Attributes:
        axes: of the mesh, that the sequence is spread over.
        tensor: whether there is more than one tensor-parallel rank.
    """

    subject: Subject
    workload: Workload
    axes: tuple[str, ...]
    tensor: bool
    ops: Tracer

    @property
    def decode(self) -> bool:
        return self.workload.phase == "decode"

    @property
    def train(self) -> bool:
        return self.workload.phase == "train"

    @property
    def batch(self) -> Dim:
        return symbol("B") / symbol("P_d")

    def sequences(self, strategy: Strategy) -> Dim:
        """Sequences of which a rank has tokens."""
        return self.batch / symbol("P_c") if self.decode and strategy.deals else self.batch

    @property
    def cut(self) -> Dim:
        """Tensor-parallel ranks."""
        return symbol("P_t") if self.tensor else 1

    @property
    def spread(self) -> Dim:
        """Ranks that the sequence is spread over."""
        return product(symbol(AXES[name]) for name in self.axes)

    @property
    def tokens(self) -> Dim:
        """Tokens of a sequence on one rank, between the gathers of tensor parallelism."""
        return 1 if self.decode else symbol("L") / self.spread

    @property
    def shard(self) -> Dim:
        """Tokens of a sequence on one rank outside of them."""
        return 1 if self.decode else self.tokens / self.cut

    def new(self, *shape: Dim, kind: str = "activation") -> Tensor:
        return Tensor.new(shape, self.ops.widths.model, kind)  # type: ignore[arg-type]

    def layer(self, layer: Layer, way: Way) -> Piece:
        """One kind of layer."""
        inner = symbol(AXES["ulysses"]) if "ulysses" in self.axes else 1
        share = Share(self.cut, symbol("L"), self.spread, inner, self.workload.packed)
        block = share.block(layer, way, way.axes, self.workload.phase, self.workload.causal)
        sizes = block.sizes
        weights = {
            name: self.new(*shape, kind="table" if name in layer.mixer.fixed else "parameter")
            for name, shape in block.weights().items()
        }
        table = Tensor.new((self.tokens, layer.mixer.rotary(sizes) / 2), 4, "table")
        kept = layer.mixer.cache(
            sizes, layer.kept(symbol("L") + (symbol("T") if self.workload.cached else 0)) / self.spread
        )
        width = self.ops.width
        earlier = kept if self.decode or self.workload.cached else ()
        cache = tuple(Tensor.new((self.batch, *k.shape), width(k.precision), "cache") for k in earlier)
        read = Traced(
            self.ops,
            lambda ops, x, *given: block(ops, x, (table, table), cache, given[-1], given[:-1]),
            [self.new(self.sequences(way.strategy), self.shard, self.subject.width), *self._memory(layer, way, sizes)],
            weights,
        )
        parameters = sum((w.elements for w in weights.values()), 0)
        sets: Dim = layer.count
        if layer.shared:
            own = sum((w.elements for name, w in weights.items() if name.startswith(OWN)), 0)
            sets = (layer.count * own + min(layer.shared, layer.count) * (parameters - own)) / lift(parameters)
        stored: Dim = 0
        if self.workload.phase in ("prefill", "decode"):
            asked = self.workload.cache_bytes
            widths = [width(k.precision) if asked is None or not k.tokens else asked for k in kept]
            held = sum((product(k.shape) * each for k, each in zip(kept, widths, strict=True)), 0)
            stored = held * self.batch * layer.count
        rows = self._rows(layer, way, block.weights())
        return Piece(layer.mixer.name, read, read.program(self.train), layer.count, parameters, sets, stored, rows)

    def _rows(self, layer: Layer, way: Way, weights: Mapping[str, Shape]) -> Dim:
        """Elements of the weights that are cut like the sequence."""
        if not way.strategy.cuts_rows:
            return 0
        uncut = Share(self.cut, symbol("L"), 1, 1).block(
            layer, way, way.axes, self.workload.phase, self.workload.causal
        )
        whole = uncut.weights()
        cut = [name for name, shape in weights.items() if not all(map(same, shape, whole[name]))]
        return sum((product(weights[name]) for name in cut), 0)

    def _memory(self, layer: Layer, way: Way, sizes: Sizes) -> list[Tensor]:
        """One rank's shard of the second sequence, if the layer reads one; decoding reads what was kept of it.

        Of a shared layer, the embeddings of the rank's tokens.
        """
        if layer.shared:
            return [self.new(self.sequences(way.strategy), self.shard, self.subject.width)]
        memory = layer.mixer.memory(sizes)
        if memory is None or self.decode:
            return []
        return [self.new(self.batch, lift(memory.tokens) / self.spread / self.cut, memory.width)]

    def ends(self, way: Way) -> Iterator[Piece]:
        """Embedding and output head, where layers are run in this way."""
        axis, sequences = way.axes.get("tensor"), self.sequences(way.strategy)
        width, vocabulary = self.subject.width, self.subject.vocabulary / self.cut
        table = self.new(vocabulary, width, kind="parameter")
        weights = {
            "final_norm": self.new(width, kind="parameter"),
            "head": self.new(width, vocabulary, kind="parameter"),
        }
        tokens = (sequences, self.tokens)
        found = Traced(self.ops, lambda ops, w: _embedded(ops, table, tokens, axis, self.train), [], {})
        yield Piece("embedding", found, found.forward, 1, table.elements, 1)
        if self.train:
            whole = self.workload.whole_logits
            chunk = self.new(self.batch, self.shard if whole else LOSS_CHUNK / self.cut, width)
            last = Traced(self.ops, lambda ops, x, w: loss(ops, x, w, axis, whole), [chunk], weights)
            count = 1 if whole else self.tokens / LOSS_CHUNK
        else:
            last = Traced(self.ops, logits, [self.new(sequences, 1, width)], weights)
            count = 1
        parameters = width + (0 if self.subject.tied else weights["head"].elements)
        yield Piece("head", last, last.program(self.train), count, parameters, 1)


def _embedded(ops: Tracer, table: Tensor, tokens: tuple[Dim, ...], axis: Axis | None, train: bool) -> Tensor:
    """The lookup, and again as much for its gradient; under tensor parallelism each rank has a part of the rows."""
    x = embed(ops, table, tokens)
    if train:
        embed(ops, table, tokens)
    if axis is None or isinstance(tokens[1], int):
        return x
    return ops.reduce_scatter(x, axis, 1)
