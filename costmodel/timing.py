"""The time of a program, in closed form over its tree.

A kernel takes its launch and then the longer of its arithmetic and its traffic (the roofline; Williams et al. 2009),
with what a profile has to add to it: tiles of attention that reach their full rate after some keys, the part of the
shorter side that the longer one does not hide, the part of attention's softmax that its products do not hide, bytes
that are still in the last-level cache, lines that a kernel goes through one by one, operands that it copies first, what
it does besides for bytes that no cache holds (``Primitive.overheads``, ``Primitive.missed``).
On one core of a CPU the two sides add up (the execution-cache-memory model; Hofmann et al., Performance Engineering for
Tall & Skinny and Streaming Kernels, arXiv 1511.03639).
Communication takes its start, its steps' latency and its bytes at the link's rate, by the protocol that is faster: one
for large messages, or one for small ones, which takes steps sooner and sends more bytes. A collective also copies the
part of its result that is a rank's own; an all-reduce runs through a switch that sums where that is faster, and along a
tree between nodes instead of a ring where fewer steps are worth less bandwidth.

In series times add; communication beside computation takes the longer of both, where computation is slower while
messages use the device's units and memory; a ring runs at fill + (n - 1) x the slower of its resources + drain, which
is what the tree of a ring adds up to. Rates are symbols, so that the time itself is a formula of the hardware too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce

from costmodel.dims import Dim, clip, is_number, maximum, minimum
from costmodel.expression import Expression, factor, symbol_named, total
from costmodel.ops.communication import AllGather, AllReduce, AllToAll, Communication, ReduceScatter, RingShift
from costmodel.ops.halo import Halo, HaloReturn
from costmodel.ops.primitive import Reading
from costmodel.ops.relay import Double, PassOn
from costmodel.program import Chain, Condition, Fused, Leaf, Loop, Node, Operation, Overlap, Seq, When

#: What the link's bandwidth is looked up under in a hardware profile.
COLLECTIVES = {
    RingShift: "ring_shift",
    Halo: "ring_shift",
    HaloReturn: "ring_shift",
    PassOn: "ring_shift",
    Double: "ring_shift",
    AllGather: "all_gather",
    ReduceScatter: "reduce_scatter",
    AllReduce: "all_reduce",
    AllToAll: "all_to_all",
}

#: The units of a device and the FLOP classes that each runs.
UNITS = {
    "matrix": ("contraction",),
    "vector": ("elementwise", "reduction", "fft", "sort", "gather"),
    "special": ("special",),
}

#: Families whose operands a kernel wrote just before, and which find them in the last-level cache if they fit.
CACHED = ("elementwise", "reduction", "gather", "copy")

#: Families that have their own way to say what they read again.
UNCACHED = ("gemm", "attention", "attention_backward", "attention_decode")

#: Fused families whose other units wait for the matrix units and these for them, as softmax and products of attention.
IN_TURN = ("attention", "attention_backward", "attention_decode")

#: Part of the last-level cache that holds a table of which rows are taken at random; through the others go these rows.
KEPT = {"far": 0.25}

#: Part of a ring's bandwidth that a tree reaches in an all-reduce over several nodes (NCCL src/graph/tuning.cc).
TREE = 0.92

#: Families whose products are of single rows, which matrix units do not take.
WITHOUT_MATRIX = ("recurrence", "convolution")


@dataclass(frozen=True)
class Times:
    """Seconds of one rank: in all, computing, and communicating. What is hidden is in both of the latter.

    Attributes:
        hindrance: what computation beside the communication takes longer.
        host: seconds in which the host hands over what the device does, ahead of it.
    """

    total: Dim = 0
    compute: Dim = 0
    communication: Dim = 0
    hindrance: Dim = 0
    host: Dim = 0

    def __add__(self, other: Times) -> Times:
        return Times(*(mine + its for mine, its in zip(self.parts, other.parts, strict=True)))

    def __mul__(self, count: Dim) -> Times:
        """So many of these, one after the other."""
        return Times(*(part * count for part in self.parts))

    @property
    def parts(self) -> tuple[Dim, ...]:
        """All of them, in order of ``PARTS``."""
        return tuple(getattr(self, name) for name in PARTS)

    def beside(self, sent: Times) -> Times:
        """The time of this work with communication at the same time, which slows it down."""
        both = self + sent
        together = maximum(self.total + sent.hindrance, sent.total)
        return Times(together, both.compute, both.communication, both.hindrance, both.host)

    @property
    def handed_over(self) -> Dim:
        """Seconds of the device, or of its host where that is slower: of a queue that never runs empty otherwise."""
        return maximum(self.total, self.host)

    @property
    def exposed(self) -> Dim:
        """Seconds that communication adds to computation."""
        return self.total - self.compute


#: Names of what a time is told by.
PARTS = tuple(field.name for field in fields(Times))


def in_series(parts: Sequence[Times]) -> Times:
    """The times of one after the other."""
    return Times(*(total(getattr(part, name) for part in parts) for name in PARTS))


def rate(quantity: str, *where: str) -> Expression:
    """The symbol of a hardware rate, such as ``rate("flops", "gemm")`` or ``rate("wire", "context", "ring_shift")``."""
    return symbol_named(":".join((quantity, *where)))


def times(node: Node, taken: Mapping[Condition, bool] | None = None) -> Times:
    """Seconds of a tree, as formulas of its dimensions and of hardware rates."""
    match node:
        case Seq():
            return in_series([times(child, taken) for child in _costly(node)])
        case Overlap(communication, computation):
            return times(computation, taken).beside(times(communication, taken))
        case Loop():
            return _loop(node)
        case Chain(rounds, after, _, _, message, body):
            work: Times = times(body, taken)
            waited: Times = (work + times(message)) * rounds
            own: Times = work * after
            return waited + own
        case When(condition, then, otherwise, _):
            return times(then if taken and taken[condition] else otherwise, taken)
        case _:
            return operation_times(node)


def _costly(series: Seq) -> Iterator[Node]:
    """What takes time of nodes one after the other, those of inner series among them."""
    for node in series.nodes:
        if isinstance(node, Seq):
            yield from _costly(node)
        elif not isinstance(node, Leaf) or node.family != "view":
            yield node


def _loop(loop: Loop) -> Times:
    """Each step by the branch that it takes."""
    conditions = {node.condition for node in loop.body.computation.nodes if isinstance(node, When)}
    if not conditions:
        every: Times = times(loop.body) * loop.step.count
        return every
    (first, *others) = conditions
    if any(other.rank != first.rank for other in others):
        raise ValueError("a loop compares its step with one rank only")
    yes = times(loop.body, dict.fromkeys(conditions, True))
    no = times(loop.body, dict.fromkeys(conditions, False))
    either: Times = yes * first.count + no * (loop.step.count - first.count)
    return either


def operation_times(operation: Operation) -> Times:
    """Seconds of one kernel, or of the parts of one that runs apart, or of one communication, as one factor."""
    if operation.family == "view":
        return Times()
    if isinstance(operation, Fused) and operation.apart:
        parts: Times = times(operation.body) * operation.repeat
        return parts
    found = _known.get(operation.signature)
    if found is None:
        found = _known[operation.signature] = _operation_times(operation)
    return found


#: Times of operations by their signatures.
_known: dict[Hashable, Times] = {}


def _operation_times(operation: Operation) -> Times:
    if isinstance(operation, Leaf) and isinstance(operation.primitive, Communication):
        seconds = factor(_wire_seconds(operation, operation.primitive))
        return Times(seconds, 0, seconds, seconds * rate("contention", operation.primitive.axis.name), rate("host"))
    arithmetic, traffic = _arithmetic_seconds(operation), _traffic_seconds(operation)
    busy = traffic if is_number(arithmetic, 0) else _both(operation, arithmetic, traffic)
    if isinstance(operation, Fused) and not is_number(operation.repeat, 1):
        steps = operation.repeat * rate("step", *operation.kernel)
        busy = maximum(busy, steps) + rate("exposed", *operation.kernel) * minimum(busy, steps)
    seconds = factor(rate("launch", *operation.kernel) + busy + _overhead_seconds(operation))
    return Times(seconds, seconds, 0, 0, rate("host"))


def _overhead_seconds(operation: Operation) -> Dim:
    if isinstance(operation, Fused):
        return 0
    counts = operation.primitive.overheads(operation.inputs, operation.outputs)
    missed = operation.primitive.missed(operation.inputs, operation.outputs)
    beyond = {name: count * missed_part(name, held, rate("cache")) for name, (count, held) in missed.items()}
    return total(count * rate(name, *operation.kernel) for name, count in (*counts.items(), *beyond.items()))


def missed_part(name: str, held: Dim, cache: Dim) -> Dim:
    """Part of some bytes, of an overhead of this name, that a cache of so many bytes does not hold."""
    return maximum(1 - KEPT.get(name, 1.0) * cache / held, 0)


def _both(operation: Operation, arithmetic: Dim, traffic: Dim) -> Dim:
    """Arithmetic beside traffic: the longer of both, and what the shorter one does not hide."""
    longer = maximum(arithmetic, traffic)
    if operation.family in IN_TURN:
        return longer
    return longer + rate("exposed", *operation.kernel) * minimum(arithmetic, traffic)


def _wire_seconds(leaf: Leaf, primitive: Communication) -> Dim:
    where = primitive.axis.name, COLLECTIVES[type(primitive)]
    steps = primitive.steps(leaf.inputs)
    sending = primitive.busy_bytes(leaf.inputs) * rate("seconds_per_byte", *where)
    sending += primitive.own_bytes(leaf.inputs) * rate("own", where[0])
    summed = primitive.switched_bytes(leaf.inputs)
    if not is_number(summed, 0):
        sending = minimum(sending, summed * rate("switched", where[0]))
    saved = maximum(steps * rate("sooner", where[0]) - sending * rate("dearer", where[0]), 0)
    waiting = steps * rate("latency", *where) - saved
    if isinstance(primitive, AllReduce):
        waiting = minimum(waiting, rate("tree", where[0]) + sending * (1 / TREE - 1))
    return rate("start", where[0]) + waiting + sending


def _arithmetic_seconds(operation: Operation) -> Dim:
    """The longest of the matrix, vector and special-function units, which work at the same time.

    In fused attention a tile's softmax waits for its scores, so that a part of the others' work adds to the longest;
    under a causal mask some tiles have more work than others, and the device waits for the last; with few tiles, some
    of the device's multiprocessors have none.
    """
    flops = dict(operation.flops(Reading.EXECUTED))
    if isinstance(operation, Leaf):
        flops["contraction"] = flops.get("contraction", 0) + _ramp(operation)
    busy: list[Dim] = []
    units = dict(UNITS)
    if operation.family in WITHOUT_MATRIX:
        units |= {"vector": (*UNITS["matrix"], *UNITS["vector"]), "matrix": ()}
    for unit, kinds in units.items():
        amount = sum(flops.get(kind, 0) for kind in kinds)
        if not is_number(amount, 0):
            busy.append(amount / rate(unit, *operation.kernel))
    longest: Dim = reduce(maximum, busy) if busy else 0
    if operation.family in IN_TURN:
        longest += rate("exposed", *operation.kernel) * (total(busy) - longest)
    if isinstance(operation, Leaf) and operation.primitive.uneven:
        longest *= 1 + rate("uneven", *operation.kernel)
    return longest * _idle(operation)


def _idle(operation: Operation) -> Dim:
    """How many times as long fused attention takes as it has fewer tiles of queries than would fill the device."""
    tiles = operation.primitive.tiles(operation.inputs) if isinstance(operation, Leaf) else 0
    return 1 if is_number(tiles, 0) else maximum(1, rate("fill", *operation.kernel) / tiles)


def _ramp(leaf: Leaf) -> Dim:
    """FLOP that would fit in the time until tiles of queries run at full rate: those of some keys more."""
    front = leaf.primitive.front(leaf.inputs, leaf.outputs)
    return front if is_number(front, 0) else front * rate("ramp", *leaf.kernel)


def _traffic_seconds(operation: Operation) -> Dim:
    """Each byte at the memory's rate, except those that a kernel before this one left in the cache.

    Operands that all fit there are found and results written there; of more, fewer, and of twice as many none, as each
    line is put out before it is needed again.
    """
    moved = sum(operation.traffic())
    seconds = moved / rate("memory", *operation.kernel)
    if operation.family not in UNCACHED and not is_number(moved, 0):
        seconds -= clip(2 - moved * rate("filled"), 0, 1) * moved * rate("kept", *operation.kernel)
    if operation.family not in CACHED or is_number(moved, 0):
        return seconds
    return seconds - minimum(moved, rate("cache")) * rate("saved", *operation.kernel)
