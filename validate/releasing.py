"""Giving memory back as soon as it is not needed, though a method's own variables still hold on to it.

A method is plain Python: its local variables keep tensors until it returns, long after the last operation that uses
them, and the memory of a run would be that of how its functions are cut. So a method is rehearsed, on shapes, just as
this rank will run it; then it is known after which operation a tensor is dead, and the run frees its memory there. A
freed tensor keeps its shape, which a method may still ask for (FSDP frees gathered weights in the same way).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from costmodel.dims import Dim
from costmodel.ops.communication import RingShift
from costmodel.ops.mesh import Axis
from costmodel.ops.primitive import Primitive
from costmodel.ops.scan import Recurrence
from costmodel.tensor import Storage, Tensor
from costmodel.trace import Tracer, Travelling, Widths

Memory = torch.UntypedStorage


@dataclass(frozen=True)
class Step:
    """What an operation does to memory, whose pieces are numbered: those that it makes, and those dead after it.

    Attributes:
        what: the operation, by its name.
    """

    what: str
    made: tuple[int | None, ...]
    dead: tuple[int, ...]


@dataclass(frozen=True)
class _Event:
    what: str
    used: tuple[Tensor, ...]
    made: tuple[Tensor, ...]


class Rehearsal(Tracer):
    """Reads a method on the shapes of one rank, with its loops and branches as that rank goes through them.

    Args:
        recording: whether autograd will record the run: what an algorithm saves for its backward must then be there
            when its forward has ended.
    """

    def __init__(self, widths: Widths, recording: bool) -> None:
        super().__init__(widths, tile=1)
        self.events: list[_Event] = []
        self._recording, self._within = recording, 0

    def ended(self, what: str, used: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """An operation has ended; those that are one kernel together, as the steps of a scan are, count as it."""
        if not self._within:
            self.events.append(_Event(what, tuple(used), tuple(made)))

    @contextmanager
    def within(self) -> Iterator[None]:
        self._within += 1
        try:
            yield
        finally:
            self._within -= 1

    def apply(self, primitive: Primitive, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = super().apply(primitive, *inputs)
        self.ended(type(primitive).__name__, inputs, outputs)
        return outputs

    def fused(self, name: str, body: Callable[..., Any], *inputs: Tensor, family: str = "elementwise") -> Any:
        with self._unrecorded():
            result = super().fused(name, body, *inputs, family=family)
        self.ended(name, inputs, result if isinstance(result, tuple) else (result,))
        return result

    def custom(self, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Tensor) -> Any:
        with self._unrecorded():
            result, saved = forward(self, *inputs)
        if self._recording:
            self.ended("saved", saved, ())
        return result

    @contextmanager
    def _unrecorded(self) -> Iterator[None]:
        outer, self._recording = self._recording, False
        try:
            yield
        finally:
            self._recording = outer

    def scan(
        self,
        loop: Recurrence,
        state: tuple[Tensor, ...],
        xs: tuple[Tensor, ...],
        constants: tuple[Tensor, ...] = (),
        axis: int = 0,
        reverse: bool = False,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        with self.within(), self._unrecorded():
            last, ys = super().scan(loop, state, xs, constants, axis, reverse)
        self.ended(loop.name, (*state, *xs, *constants), (*last, *ys))
        return last, ys

    def when(self, condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        return then() if condition else otherwise()

    def visiting(self, axis: Axis, step: Any) -> Dim:
        return (axis.rank - step) % axis.size

    def rotate(
        self, axis: Axis, blocks: tuple[Tensor, ...], accumulators: tuple[Tensor, ...] = ()
    ) -> Iterator[tuple[Any, tuple[Tensor, ...], Any]]:
        # Accumulators travel in backward passes only, which are not rehearsed.
        travelling = Travelling(self, axis, accumulators)
        for step in range(int(axis.size)):
            following = self.apply(RingShift(axis), *blocks) if step < axis.size - 1 else ()
            if step > 0:
                travelling.shift()
            yield step, blocks, travelling
            self.ended("ring step", (*blocks, *following), ())
            blocks = following

    def relay(
        self,
        axis: Axis,
        start: tuple[Tensor, ...],
        body: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
        reverse: bool = False,
        behind: bool = False,
    ) -> tuple[Tensor, ...]:
        given = self._received("relay, received", start)
        self.ended("relay, passed on", body(given), ())
        return given

    def pass_on(
        self, axis: Axis, start: tuple[Tensor, ...], own: tuple[Tensor, ...], reverse: bool = False
    ) -> tuple[Tensor, ...]:
        return self._received("pass on", start, own)

    def prefix(
        self,
        axis: Axis,
        own: tuple[Tensor, ...],
        combine: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, ...]],
        reverse: bool = False,
    ) -> tuple[Tensor, ...]:
        distance, position = 1, axis.size - 1 - axis.rank if reverse else axis.rank
        while distance < axis.size:
            given = self._received("prefix", own)
            own = combine(given, own) if position >= distance else own
            distance *= 2
        return own

    def _received(self, what: str, like: tuple[Tensor, ...], sent: tuple[Tensor, ...] = ()) -> tuple[Tensor, ...]:
        received = tuple(Tensor.new(x.shape, x.width) for x in like)
        self.ended(what, (*like, *sent), received)
        return received


def rehearse(
    ops: Rehearsal, method: Callable[[Rehearsal, Sequence[Tensor]], Tensor], given: Sequence[Tensor]
) -> tuple[Step, ...]:
    """What each operation of ``method(ops, given)`` does to memory.

    The first pieces, by their numbers, are those of the given activations; parameters, tables, caches and the result
    are in none, or never dead.
    """
    result = method(ops, given)
    numbers: dict[Storage, int] = {}
    for x in (*given, *(x for event in ops.events for x in event.made)):
        if x.storage.kind == "activation":
            numbers.setdefault(x.storage, len(numbers))
    last = {x.storage: place for place, event in enumerate(ops.events) for x in (*event.used, *event.made)}
    last.pop(result.storage, None)
    dead: dict[int, list[int]] = defaultdict(list)
    for storage, place in last.items():
        if storage in numbers:
            dead[place].append(numbers[storage])
    return tuple(
        Step(event.what, tuple(numbers.get(x.storage) for x in event.made), tuple(dead[place]))
        for place, event in enumerate(ops.events)
    )


class Releasing:
    """Frees memory in one run of a method that was rehearsed.

    Args:
        steps: of the rehearsal.
        given: tensors of its first pieces that may be freed as well, ``None`` for those that may not.
    """

    def __init__(self, steps: Sequence[Step], given: Sequence[torch.Tensor | None]) -> None:
        self._steps, self._place = steps, 0
        self._memory: dict[int, list[Memory]] = defaultdict(list)  # of a piece
        self._pieces: dict[int, set[int]] = defaultdict(set)  # that are in a memory, by its address
        self._lasting = set[int]()
        for number, x in enumerate(given):
            if x is not None:
                self._put(number, x)

    def keep(self, tensors: Iterable[torch.Tensor]) -> None:
        """Never free what these are in: autograd reads it, or the caller has it."""
        self._lasting.update(x.untyped_storage().data_ptr() for x in tensors)

    def ended(self, what: str, made: Sequence[torch.Tensor], reused: Sequence[torch.Tensor] = ()) -> list[Memory]:
        """An operation has ended: the memory that was freed.

        Args:
            reused: tensors whose memory is written again: if dead, it is not freed all the same.

        Raises:
            RuntimeError: when the run does something else than the rehearsal.
        """
        step = self._steps[self._place] if self._place < len(self._steps) else None
        if step is None or step.what != what or len(step.made) != len(made):
            told = "ends" if step is None else f"has {step.what} with {len(step.made)} results"
            raise RuntimeError(f"operation {self._place} is {what} with {len(made)} results; its rehearsal {told}")
        self._place += 1
        for number, x in zip(step.made, made, strict=True):
            if number is not None:
                self._put(number, x)
        kept = self._lasting | {x.untyped_storage().data_ptr() for x in reused}
        freed = []
        for number in step.dead:
            for memory in self._memory.pop(number, ()):
                others = self._pieces[memory.data_ptr()]
                others.discard(number)
                if not others and memory.data_ptr() not in kept:
                    memory.resize_(0)
                    freed.append(memory)
        return freed

    def _put(self, number: int, x: torch.Tensor) -> None:
        memory = x.untyped_storage()
        if memory.nbytes() > 0 and number not in self._pieces[memory.data_ptr()]:
            self._pieces[memory.data_ptr()].add(number)
            self._memory[number].append(memory)
