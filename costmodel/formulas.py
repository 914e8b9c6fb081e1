"""The formulas of one layer on one rank, with every size a symbol: the same trace that the planner evaluates."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from costmodel.arrangement import Way
from costmodel.candidates import Meshes, fitting, meshes, refusals
from costmodel.errors import InputError
from costmodel.estimate import check_way
from costmodel.expression import Expression, UndecidedError, lift, symbol_named
from costmodel.mixer import Mixer
from costmodel.notation import simplified
from costmodel.ops.primitive import Reading
from costmodel.piece import Piece, Pieces
from costmodel.subject import Layer, Subject, from_mixer
from costmodel.symbols import MEANING, symbol
from costmodel.trace import Tracer, Widths
from costmodel.workload import Workload

#: A length and numbers of devices with many divisors, for asking whether a way is valid for any.
MANY_DIVISORS = 2**20 * 3**4 * 5 * 7
#: Tokens for a mixer whose ranks must have pieces that are a power of two.
DOUBLED = 2**20
DEVICES = range(1, 17)


@dataclass(frozen=True)
class Formula:
    """One formula of a layer.

    Attributes:
        part: what it is part of: ``"flop"``, ``"traffic"``, ``"wire"`` or ``"memory"``.
        name: which one of that part, such as ``"contraction"`` or ``"context"``.
        detail: the readings of FLOPs that it gives, or what is counted.
        unit: ``"FLOP"``, ``"bytes"`` or ``"messages"``.
    """

    part: str
    name: str
    detail: str
    unit: str
    value: Expression


@dataclass(frozen=True)
class LayerFormulas:
    """All formulas of a mixer's layer, run in one way.

    Attributes:
        numbers: hyperparameters that are numbers in them, by symbol.
    """

    mixer: Mixer
    way: Way
    workload: Workload
    formulas: tuple[Formula, ...]
    numbers: Mapping[str, int]

    @property
    def legend(self) -> dict[str, str]:
        """The symbols that occur and what they mean, in the order of ``costmodel.symbols``."""
        known = MEANING | {size.symbol: size.meaning for size in self.mixer.sizes.values()}
        used = symbols_of(self.formulas)
        return {name: meaning for name, meaning in known.items() if name in used}

    def after(self, cached: int) -> LayerFormulas:
        """With a number of cached tokens in place of the symbol T."""
        known = tuple(replace(formula, value=formula.value.substitute({"T": cached})) for formula in self.formulas)
        return replace(self, formulas=known, numbers={**self.numbers, "T": cached})


def symbols_of(formulas: Iterable[Formula]) -> set[str]:
    """Names of the symbols that occur."""
    return set().union(*(formula.value.symbols() for formula in formulas))


def layer_formulas(mixer: str, way: Way, workload: Workload, fixed: Mapping[str, int] | None = None) -> LayerFormulas:
    """The formulas of one layer of a mixer, without norms, residuals and feed-forward.

    Args:
        workload: its pass and mask; length, batch, dtype and the number of cached tokens are symbols in the formulas.
        fixed: hyperparameters to set to numbers, by the names that users give. Those that are usually 0 (such as a
            window) are 0 unless they are here; those that the method loops over in Python have their usual numbers.

    Raises:
        UnknownNameError: for a mixer or a hyperparameter that does not exist.
        InputError: where the way does not apply to the mixer, mask or pass.
    """
    given = dict(fixed or {})
    [numbers] = from_mixer(mixer, **given).layers
    _check(numbers, way, workload)
    parameters = numbers.mixer.sizes.items()
    symbols = frozenset(size.symbol for key, size in parameters if key not in given and size.usual)
    piece, symbols = _traced(numbers, symbols, way, workload)
    sizes = dict(numbers.sizes) | ({"w": numbers.window} if numbers.window else {})
    told = {size.symbol: sizes[size.symbol] for _, size in parameters if sizes.get(size.symbol)}
    fixed_sizes = {name: number for name, number in told.items() if name not in symbols}
    return LayerFormulas(numbers.mixer, way, workload, tuple(_formulas(piece, workload)), fixed_sizes)


def _traced(numbers: Layer, symbols: frozenset[str], way: Way, workload: Workload) -> tuple[Piece, frozenset[str]]:
    """The layer with symbols for some of its sizes, and which are left once the method has the numbers it needs."""
    ops = Tracer(Widths(symbol("s"), symbol("a"), symbol("g")), 1 if workload.phase == "decode" else symbol("t"))
    layer = _symbolic(numbers, symbols)
    subject = Subject(layer.mixer.name, symbol("D"), (layer,))  # type: ignore[arg-type]
    try:
        return Pieces(subject, workload, way.strategy.axes, way.tensor, ops).layer(layer, way), symbols
    except UndecidedError as error:
        if not error.symbols & symbols:
            raise
        return _traced(numbers, symbols - error.symbols, way, workload)


def _symbolic(numbers: Layer, symbols: Collection[str]) -> Layer:
    """A layer with symbols for some of its sizes, the model width among them."""
    named = {name: symbol_named(name) for name in symbols}
    sizes = {name: named.get(name, number) for name, number in numbers.sizes.items()} | {"D": symbol("D")}
    window = named.get("w", numbers.window) if numbers.window else None
    return Layer(numbers.mixer, sizes, window, None, 1)  # type: ignore[arg-type]


def _check(layer: Layer, way: Way, workload: Workload) -> None:
    """Whether a way is valid for some length and some numbers of ranks."""
    check_way(layer, way, workload.causal)
    among = fitting(way.strategy.axes, way.tensor, reduce(Meshes.joined, [meshes(count) for count in DEVICES]))
    many = DOUBLED if layer.mixer.doubled else MANY_DIVISORS
    length = min(many, layer.mixer.longest(way.kernel) or many)
    long = Workload(length, 2 * 3 * 5 * 7, workload.phase, workload.causal, cached=length if workload.cached else 0)
    valid, reasons = refusals(layer, way, long, among)
    if not np.any(valid):
        raise InputError("--strategy", str(way), "; ".join(reasons))


def _formulas(piece: Piece, workload: Workload) -> Iterator[Formula]:
    program = piece.program
    yield from _flops(piece)
    read, written = program.traffic()
    yield Formula("traffic", "read", "by kernels", "bytes", lift(read))
    yield Formula("traffic", "written", "by kernels", "bytes", lift(written))
    for axis, sent in program.wire().items():
        yield Formula("wire", axis, "sent", "bytes", lift(sent.bytes))
        yield Formula("wire", axis, "sent", "messages", lift(sent.messages))
    yield Formula("memory", "weights", "parameters", "bytes", piece.parameters * symbol("s"))
    if workload.phase == "train":
        yield Formula("memory", "saved", "activations kept for the backward pass", "bytes", lift(piece.held.saved))
    yield Formula("memory", "peak", "activations, at most", "bytes", lift(piece.held.peak))
    if workload.phase in ("prefill", "decode"):
        yield Formula("memory", "cache", "kept for decoding", "bytes", lift(piece.cache))


def _flops(piece: Piece) -> Iterator[Formula]:
    """FLOPs by class; readings that agree are told together."""
    counted = {reading: piece.program.flops(reading) for reading in Reading}
    for kind in dict.fromkeys(kind for classes in counted.values() for kind in classes):
        told: dict[Expression, list[str]] = {}
        for reading, classes in counted.items():
            told.setdefault(simplified(lift(classes.get(kind, 0))), []).append(reading.value)
        for value, readings in told.items():
            yield Formula("flop", kind, ", ".join(readings), "FLOP", value)
