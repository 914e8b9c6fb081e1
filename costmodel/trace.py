"""Reading a method as a ``Program``: forward as it is written, backward by each primitive's rule in reverse."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from costmodel.dims import Dim, Shape, same
from costmodel.masks import Tile
from costmodel.ops.communication import RingShift
from costmodel.ops.mesh import Axis
from costmodel.ops.pointwise import Map
from costmodel.ops.primitive import Primitive
from costmodel.ops.relay import Double, PassOn
from costmodel.ops.scan import Operands, Recurrence, with_axis, without_axis
from costmodel.ops.scan import backward as scan_backward
from costmodel.ops.vocabulary import Vocabulary
from costmodel.program import (
    Chain,
    Condition,
    Fused,
    Leaf,
    Loop,
    Node,
    Operation,
    Overlap,
    Program,
    Seq,
    Step,
    When,
    operations,
)
from costmodel.tensor import Storage, Tensor

Pullback = Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class _Taped:
    """What reverse mode needs of one operation."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    pullback: Pullback


@dataclass(frozen=True)
class Widths:
    """Bytes of an element: of the model's dtype, of accumulation, and of gradients that travel."""

    model: Dim
    accumulate: Dim
    gradient: Dim


class Tracer(Vocabulary[Tensor]):
    """Records what a method does, on tensors that are only shapes.

    Args:
        widths: bytes of one element at each precision.
        tile: edge of the fused attention kernel's tile, in queries and keys, or its columns.
        fuses: whether what a mixer fuses runs as one kernel.
    """

    def __init__(self, widths: Widths, tile: Tile, *, fuses: bool = True) -> None:
        self.widths, self.tile, self.fuses = widths, tile, fuses
        self._sink: list[Node] = []
        self._tape: list[_Taped] | None = None
        self._needed: set[Tensor] = set()  # tensors on the way from what is differentiated to what it is wanted for

    def shape(self, x: Tensor) -> Shape:
        return x.shape

    def width(self, precision: str) -> Dim:
        return getattr(self.widths, precision)

    def precision(self, x: Tensor) -> str:
        known = ("model", "accumulate", "gradient")
        return next(name for name in known if same(x.width, self.width(name)))

    def apply(self, primitive: Primitive, *inputs: Tensor) -> tuple[Tensor, ...]:
        specs = primitive.outputs(*inputs)
        outputs = tuple(
            Tensor.new(spec.shape, spec.width)
            if spec.view_of is None
            else Tensor(spec.shape, spec.width, inputs[spec.view_of].storage)
            for spec in specs
        )
        self._did(Leaf(primitive, inputs, outputs))

        def pullback(gradients: Sequence[Tensor | None]) -> Sequence[Any]:
            if gradients[0] is None:  # only the first output of a primitive is differentiable
                return [None] * len(inputs)
            return primitive.backward(self, inputs, outputs, gradients)

        differentiable = tuple(y for y, spec in zip(outputs, specs, strict=True) if spec.differentiable)
        self._record(inputs, differentiable, pullback)
        return outputs

    def cast(self, x: Tensor, precision: str) -> Tensor:
        return x if same(x.width, self.width(precision)) else super().cast(x, precision)

    def keep(self, x: Tensor) -> Tensor:
        x.storage.kind = "cache"
        return x

    def fused(self, name: str, body: Callable[..., Any], *inputs: Tensor, family: str = "elementwise") -> Any:
        with self._capture() as nodes, self._taping(None):
            result = body(self, *inputs)
        outputs = tuple(result) if isinstance(result, tuple) else (result,)
        self._did(Fused(name, Seq(nodes), inputs, outputs, family, apart=not self.fuses))

        def pullback(gradients: Sequence[Tensor]) -> Sequence[Tensor | None]:
            needed = [x in self._needed for x in inputs]

            def backward(ops: Tracer, *tensors: Tensor) -> tuple[Tensor, ...]:
                recomputed, gradients = tensors[: len(inputs)], tensors[len(inputs) :]
                wanted = [x for x, need in zip(recomputed, needed, strict=True) if need]
                return tuple(ops.differentiate(lambda *xs: body(ops, *xs), recomputed, gradients, wanted))

            found = iter(self.fused(f"{name} backward", backward, *inputs, *gradients, family=family))
            return [next(found) if need else None for need in needed]

        self._record(inputs, outputs, pullback)
        return result

    def custom(self, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Tensor) -> Any:
        with self._taping(None):
            result, saved = forward(self, *inputs)
        self._record(inputs, _tuple(result), lambda gradients: backward(self, saved, *gradients))
        return result

    # Control flow -----------------------------------------------------------------------------------------------

    def when(self, condition: Condition, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        with self._capture() as first:
            results = then()
        with self._capture() as second:
            others = otherwise()
        pairs = tuple(zip(_tuple(results), _tuple(others), strict=True))
        for a, b in pairs:
            if not all(same(m, n) for m, n in zip(a.shape, b.shape, strict=True)):
                raise ValueError(f"the branches of a condition give shapes {a.shape} and {b.shape}")
        self._sink.append(When(condition, Seq(first), Seq(second), pairs))
        return results

    def rotate(
        self, axis: Axis, blocks: tuple[Tensor, ...], accumulators: tuple[Tensor, ...] = ()
    ) -> Iterator[tuple[Any, tuple[Tensor, ...], Travelling]]:
        travelling = Travelling(self, axis, accumulators)
        stages: list[tuple[Any, bool]] = [
            (0, True),
            (Step(1, axis.size - 1, axis.size), True),
            (Step(axis.size - 1, axis.size, axis.size), False),
        ]
        for step, pass_on in stages:
            with self._capture() as communication:
                following = self.apply(RingShift(axis), *blocks) if pass_on else ()
                if isinstance(step, Step):
                    travelling.shift()
            with self._capture() as computation:
                yield step, blocks, travelling
            body = Overlap(Seq(communication), Seq(computation))
            self._sink.append(Loop(step, body) if isinstance(step, Step) else body)
            blocks = following

    def visiting(self, axis: Axis, step: Any) -> Dim:
        return axis.rank  # one stands for all: where a slice starts costs nothing

    def visitors(self, axis: Axis, step: Any, earlier: bool | None, own: bool = False) -> tuple[tuple[Dim, Dim], ...]:
        if own:
            return ((0, axis.size),)
        before, after = (0, axis.rank), (axis.rank + 1, axis.size - 1 - axis.rank)
        return (before, after) if earlier is None else (before,) if earlier else (after,)

    def relay(
        self,
        axis: Axis,
        start: tuple[Tensor, ...],
        body: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
        reverse: bool = False,
        behind: bool = False,
    ) -> tuple[Tensor, ...]:
        primitive, given = PassOn(axis, reverse), _fresh(start)
        with self._capture() as nodes:
            passed = body(given)
        # The whole line, on every rank: those that are early wait for the others before anything comes back to them.
        rounds, after = (1, 0) if behind else (axis.size - 1, 1)
        self._chain(primitive, rounds, after, passed, given, nodes)
        return given

    def pass_on(
        self, axis: Axis, start: tuple[Tensor, ...], own: tuple[Tensor, ...], reverse: bool = False
    ) -> tuple[Tensor, ...]:
        given = _fresh(start)
        self._chain(PassOn(axis, reverse), 1, 0, own, given, [])
        return given

    def prefix(
        self,
        axis: Axis,
        own: tuple[Tensor, ...],
        combine: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, ...]],
        reverse: bool = False,
    ) -> tuple[Tensor, ...]:
        primitive, given = Double(axis, reverse), _fresh(own)
        with self._capture() as nodes:
            combined = combine(given, own)
        self._chain(primitive, primitive.works, 0, own, given, nodes)
        return combined

    def _chain(
        self,
        primitive: PassOn,
        rounds: Dim,
        after: Dim,
        passed: tuple[Tensor, ...],
        given: tuple[Tensor, ...],
        nodes: list[Node],
    ) -> None:
        message = Leaf(primitive, passed, given)
        self._sink.append(Chain(rounds, after, primitive.works, primitive.sends, message, Seq(nodes)))

    def scan(
        self,
        loop: Recurrence,
        state: tuple[Tensor, ...],
        xs: tuple[Tensor, ...],
        constants: tuple[Tensor, ...] = (),
        axis: int = 0,
        reverse: bool = False,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        given, count = Operands(state, xs, constants, axis, reverse), xs[0].shape[axis]
        with self._capture() as nodes, self._taping(None):
            before = tuple(Tensor.new(x.shape, x.width) for x in state)
            own = tuple(Tensor.new(without_axis(x.shape, axis), x.width) for x in xs)
            after = loop.advance(self, before, own, constants)
            out = loop.emit(self, before, after, own, constants)
        for a, b in zip(before, after, strict=True):
            if not all(same(m, n) for m, n in zip(a.shape, b.shape, strict=True)):
                raise ValueError(f"scan '{loop.name}' turns a state of shape {a.shape} into one of {b.shape}")
        last = tuple(Tensor.new(x.shape, x.width) for x in after)
        ys = tuple(Tensor.new(with_axis(y.shape, axis, count), y.width) for y in out)
        apart = not self.fuses
        self._did(Fused(loop.name, Seq(nodes), given.all, (*last, *ys), loop.family, count, apart))
        self._record(given.all, (*last, *ys), lambda gradients: scan_backward(self, loop, given, gradients))
        return last, ys

    # Reverse mode -----------------------------------------------------------------------------------------------

    def differentiate(
        self,
        method: Callable[..., Any],
        inputs: Sequence[Tensor],
        gradients: Sequence[Tensor],
        wanted: Sequence[Tensor],
    ) -> list[Tensor]:
        """Run ``method(*inputs)`` and then its reverse: the gradients of ``wanted``, given those of its outputs."""
        with self._taping([]) as tape:
            outputs = _tuple(method(*inputs))
        with self._taping(None):
            found: dict[Tensor, Tensor] = {}
            for output, gradient in zip(outputs, gradients, strict=True):
                found[output] = self.add(found[output], gradient) if output in found else gradient
        return self.reverse(tape, found, wanted, {gradient.storage for gradient in gradients})

    def pull_back(
        self, method: Callable[..., Any], inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        return tuple(self.differentiate(method, inputs, gradients, inputs))

    def reverse(
        self,
        tape: Sequence[_Taped],
        found: dict[Tensor, Tensor],
        wanted: Sequence[Tensor],
        held: Collection[Storage] = (),
    ) -> list[Tensor]:
        """Walk a tape backwards from the gradients ``found`` to those of the tensors ``wanted``.

        Args:
            held: memory that the caller goes on reading.
        """
        kept = set(wanted)
        needed = set(wanted)
        for entry in tape:
            if needed.intersection(entry.inputs):
                needed.update(entry.outputs)
        outer, self._needed = self._needed, needed
        with self._taping(None):
            for entry in reversed(tape):
                gradients = [found.get(y) if y in kept else found.pop(y, None) for y in entry.outputs]
                if all(g is None for g in gradients) or not needed.intersection(entry.inputs):
                    continue
                with self._capture() as nodes:
                    pulled = [
                        gradient() if x in needed and callable(gradient) else gradient
                        for x, gradient in zip(entry.inputs, entry.pullback(gradients), strict=True)
                    ]
                self._sink.append(Seq(nodes, _given(nodes)))
                for x, gradient in zip(entry.inputs, pulled, strict=True):
                    if x in needed and gradient is not None:
                        found[x] = self._with_another(found, x, self._as_precise(gradient, x), held)
            self._needed = outer
            return [found[x] if x in found else self.zeros_like(x) for x in wanted]

    def _with_another(
        self, found: Mapping[Tensor, Tensor], x: Tensor, gradient: Tensor, held: Collection[Storage]
    ) -> Tensor:
        """The gradient of x with what comes from one more of its uses.

        It is added in place where the memory of the sum so far is of nothing else, as autograd does
        (torch/csrc/autograd/input_buffer.cpp).
        """
        if x not in found:
            return gradient
        memory = found[x].storage
        others = [gradient, *(other for y, other in found.items() if y is not x)]
        free = memory not in held and all(other.storage is not memory for other in others)
        in_place = free and same(found[x].bytes, memory.bytes)
        return self.apply(Map("add", in_place), found[x], gradient)[0]

    def _as_precise(self, gradient: Tensor, x: Tensor) -> Tensor:
        """A gradient at the precision of what it is the gradient of."""
        return gradient if same(gradient.width, x.width) else self.cast(gradient, self.precision(x))

    def _did(self, operation: Operation) -> None:
        """An operation has been done."""
        self._sink.append(operation)

    def _record(self, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], pullback: Pullback) -> None:
        if self._tape is not None:
            self._tape.append(_Taped(inputs, outputs, pullback))

    @contextmanager
    def _capture(self) -> Iterator[list[Node]]:
        outer, self._sink = self._sink, []
        try:
            yield self._sink
        finally:
            self._sink = outer

    @contextmanager
    def _taping(self, tape: Any) -> Iterator[Any]:
        outer, self._tape = self._tape, tape
        try:
            yield tape
        finally:
            self._tape = outer


class Travelling:
    """Accumulators on their way round a ring (``Vocabulary.rotate``)."""

    def __init__(self, ops: Tracer, axis: Axis, accumulators: tuple[Tensor, ...]) -> None:
        self._ops, self._axis, self._at_hand = ops, axis, accumulators

    def arrive(self) -> tuple[Tensor, ...]:
        return self._at_hand

    def depart(self, *accumulators: Tensor) -> None:
        self._at_hand = accumulators

    def shift(self) -> None:
        if self._at_hand:
            self._at_hand = self._ops.apply(RingShift(self._axis), *self._at_hand)

    def home(self) -> tuple[Tensor, ...]:
        self.shift()
        return self._at_hand


def _given(nodes: list[Node]) -> tuple[Tensor, ...]:
    """What operations read that was there before them."""
    made, given = set[Storage](), dict[Storage, Tensor]()
    for operation, _ in operations(Seq(nodes)):
        given.update({x.storage: x for x in operation.inputs if x.storage not in made})
        made.update(x.storage for x in operation.outputs if x.storage not in given)
    return tuple(given.values())


def _fresh(like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(Tensor.new(x.shape, x.width) for x in like)


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


class Traced:
    """A method read forward, and what its backward pass is found from.

    The arguments are those of ``trace``.
    """

    def __init__(
        self,
        ops: Tracer,
        method: Callable[..., Any],
        activations: Sequence[Tensor],
        parameters: Mapping[str, Tensor],
        recompute: bool = False,
    ) -> None:
        self._ops, self._method, self._recompute = ops, method, recompute
        self._activations, self._parameters = activations, parameters
        with ops._capture() as forward, ops._taping(None if recompute else []) as self._tape:
            self._outputs = _tuple(self._run())
        self._forward = Seq(forward)

    def _run(self, *_: Tensor) -> Any:
        return self._method(self._ops, *self._activations, self._parameters)

    def program(self, train: bool) -> Program:
        """``both`` or ``forward``."""
        return self.both if train else self.forward

    @cached_property
    def forward(self) -> Program:
        """The program without a backward pass."""
        return Program(self._forward, Seq(), tuple(self._activations), self._outputs)

    @cached_property
    def both(self) -> Program:
        """The program to the gradients of activations and parameters."""
        ops = self._ops
        given = (*self._activations, *self._parameters.values())
        wanted = [x for x in given if x.storage.kind in ("activation", "parameter")]
        seeds = [Tensor.new(y.shape, y.width) for y in self._outputs]
        with ops._capture() as backward:
            if self._recompute:
                gradients = ops.differentiate(self._run, self._activations, seeds, wanted)
            else:
                gradients = ops.reverse(self._tape, dict(zip(self._outputs, seeds, strict=True)), wanted)
        for x, gradient in zip(wanted, gradients, strict=True):
            if x.storage.kind == "parameter":
                gradient.storage.kind = "gradient"
        kept = tuple(g for g in gradients if g.storage.kind == "activation")
        return Program(self._forward, Seq(backward), tuple(self._activations), kept)


def trace(
    ops: Tracer,
    method: Callable[..., Any],
    activations: Sequence[Tensor],
    parameters: Mapping[str, Tensor],
    train: bool = False,
    recompute: bool = False,
) -> Program:
    """Read ``method(ops, *activations, parameters)`` as a program.

    Args:
        train: with the backward pass, to the gradients of activations and parameters.
        recompute: save only the activations, and run the forward pass again before the backward.
    """
    return Traced(ops, method, activations, parameters, recompute).program(train)
