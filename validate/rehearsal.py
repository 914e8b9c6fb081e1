"""A method read on the shapes of one rank, just as this rank will run it: after which operation a tensor is dead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from costmodel.block import Block
from costmodel.ops.communication import RingShift
from costmodel.ops.mesh import Axis
from costmodel.program import Operation
from costmodel.tensor import Kind, Tensor
from costmodel.trace import Tracer, Travelling, Widths
from validate.executor import Executor
from validate.one_rank import OneRank
from validate.releasing import Step


@dataclass(frozen=True)
class _Event:
    what: str
    used: tuple[Tensor, ...]
    made: tuple[Tensor, ...]
    backward: tuple[Step, ...] | None = None


class Rehearsal(OneRank[Tensor], Tracer):
    """Reads a method on the shapes of one rank, with its loops and branches as that rank goes through them.

    Args:
        recording: whether autograd will record the run: what an algorithm saves for its backward must then be there
            when its forward has ended.
    """

    def __init__(self, widths: Widths, recording: bool) -> None:
        super().__init__(widths, tile=1)
        self.events: list[_Event] = []
        self._tape = [] if recording else None

    def steps(
        self, method: Callable[[Rehearsal, Sequence[Tensor]], Tensor], given: Sequence[Tensor]
    ) -> tuple[Step, ...]:
        """What each operation of ``method(ops, given)`` makes, and after which nothing reads a tensor any more.

        The first tensors, by their numbers, are the given activations; parameters, tables and caches have none, and the
        result is never dead. A view is a tensor of its own: where the run has to copy, it is free of what it views.
        """
        return self._steps(given, [method(self, given)])

    def _steps(self, given: Sequence[Tensor], results: Sequence[Tensor | None]) -> tuple[Step, ...]:
        numbers: dict[Tensor, int] = {}
        for x in (*given, *(x for event in self.events for x in event.made)):
            if x.storage.kind == "activation":
                numbers.setdefault(x, len(numbers))
        last = {x: place for place, event in enumerate(self.events) for x in (*event.used, *event.made)}
        last = {x: place for x, place in last.items() if x not in results}
        dead: dict[int, list[int]] = defaultdict(list)
        for x, place in last.items():
            if x in numbers:
                dead[place].append(numbers[x])
        return tuple(
            Step(event.what, tuple(numbers.get(x) for x in event.made), tuple(dead[place]), event.backward)
            for place, event in enumerate(self.events)
        )

    def _did(self, operation: Operation) -> None:
        super()._did(operation)
        self.events.append(_Event(operation.name, operation.inputs, operation.outputs))

    def scan(self, *given: Any, **options: Any) -> Any:
        begun = len(self.events)
        result = super().scan(*given, **options)
        del self.events[begun:-1]  # its steps are one kernel together
        return result

    def custom(self, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Tensor) -> Any:
        recording = self._tape is not None
        with self._taping(None):
            result, saved = forward(self, *inputs)
        if recording:
            results = result if isinstance(result, tuple) else (result,)
            self.events.append(_Event("saved", saved, (), self._backward(backward, saved, results)))
        return result

    def _backward(
        self, backward: Callable[..., Any], saved: tuple[Tensor, ...], results: tuple[Tensor, ...]
    ) -> tuple[Step, ...] | None:
        """What a backward pass does with what was saved; ``None`` where it gives functions that may not be called."""
        ops, gradients = Rehearsal(self.widths, recording=False), [Tensor.new(x.shape, x.width) for x in results]
        found = backward(ops, saved, *gradients)
        return None if any(map(callable, found)) else ops._steps((*saved, *gradients), found)

    def pull_back(
        self, method: Callable[..., Any], inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        found = tuple(Tensor.new(x.shape, x.width) for x in inputs)
        self.events.append(_Event("pull back", (*inputs, *gradients), found))
        return found

    def rotate(
        self, axis: Axis, blocks: tuple[Tensor, ...], accumulators: tuple[Tensor, ...] = ()
    ) -> Iterator[tuple[Any, tuple[Tensor, ...], Any]]:
        travelling = _Travelling(self, axis, accumulators)
        for step in range(int(axis.size)):
            following = self.apply(RingShift(axis), *blocks) if step < axis.size - 1 else ()
            if step > 0:
                travelling.shift()
            yield step, blocks, travelling
            self.events.append(_Event("ring step", (*blocks, *following, *travelling.leaving), ()))
            blocks = following

    def hand_over(
        self, axis: Axis, what: str, hop: int, sent: tuple[Tensor, ...], like: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        received = tuple(Tensor.new(x.shape, x.width) for x in like)
        self.events.append(_Event(what, (*like, *sent), received))
        return received


class _Travelling(Travelling):
    """Accumulators on their way, with those that are being sent: their memory is there until they have gone."""

    def __init__(self, ops: Rehearsal, axis: Axis, accumulators: tuple[Tensor, ...]) -> None:
        super().__init__(ops, axis, accumulators)
        self.events, self.leaving = ops.events, tuple[Tensor, ...]()

    def shift(self) -> None:
        self.leaving = self._at_hand
        super().shift()

    def home(self) -> tuple[Tensor, ...]:
        found = super().home()
        self.events.append(_Event("home", self.leaving, ()))
        return found


def rehearsed(
    block: Block,
    ops: Executor,
    weights: Mapping[str, torch.Tensor],
    given: Sequence[torch.Tensor],
    tables: Sequence[torch.Tensor],
    cache: Sequence[torch.Tensor],
) -> tuple[Step, ...]:
    """What a layer's operations do to memory when ``ops`` runs it on tensors of these shapes."""

    def shapes(tensors: Iterable[torch.Tensor], kind: Kind) -> tuple[Tensor, ...]:
        return tuple(Tensor.new(tuple(x.shape), x.itemsize, kind) for x in tensors)

    parameters = dict(zip(weights, shapes(weights.values(), "parameter"), strict=True))
    (cos, sin), kept = shapes(tables, "table"), shapes(cache, "cache")
    widths = Widths(ops.width("model"), ops.width("accumulate"), ops.width("gradient"))
    return Rehearsal(widths, torch.is_grad_enabled()).steps(
        lambda ops, given: block(ops, given[0], (cos, sin), kept, parameters, tuple(given[1:])),
        shapes(given, "activation"),
    )
