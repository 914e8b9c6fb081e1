"""Giving memory back as soon as it is not needed, though a method's own variables still hold on to it.

A method is plain Python: its local variables keep tensors until it returns, long after the last operation that uses
them, and the memory of a run would be that of how its functions are cut. So a method is rehearsed, on shapes, just as
this rank will run it; then it is known after which operation a tensor is dead, and the run frees its memory there. A
freed tensor keeps its shape, which a method may still ask for (FSDP frees gathered weights in the same way).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

Memory = torch.UntypedStorage


@dataclass(frozen=True)
class Step:
    """What an operation does to tensors, which are numbered: those that it makes, and those dead after it.

    Attributes:
        what: the operation, by its name.
        backward: where it keeps tensors for a backward pass of its own, what that does; ``None`` if it is not known.
    """

    what: str
    made: tuple[int | None, ...]
    dead: tuple[int, ...]
    backward: tuple[Step, ...] | None = None


class Releasing:
    """Frees memory in one run of a method that was rehearsed.

    Args:
        steps: of the rehearsal.
        given: its first tensors, which may be freed as well.
    """

    def __init__(self, steps: Sequence[Step], given: Sequence[torch.Tensor]) -> None:
        self._steps, self._place = steps, 0
        self._memory: dict[int, list[Memory]] = defaultdict(list)  # of a tensor
        self._tensors: dict[int, set[int]] = defaultdict(set)  # that are in a memory, by its address
        self._lasting = set[int]()
        for number, x in enumerate(given):
            self._put(number, x)

    def keep(self, tensors: Iterable[torch.Tensor]) -> None:
        """Never free what these are in: autograd reads it, or the caller has it."""
        self._lasting.update(x.untyped_storage().data_ptr() for x in tensors)

    @property
    def backward(self) -> tuple[Step, ...] | None:
        """What the backward pass does for which the next operation keeps tensors."""
        return self._steps[self._place].backward if self._place < len(self._steps) else None

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
        again = {x.untyped_storage().data_ptr() for x in reused}
        freed = []
        for number in step.dead:
            for memory in self._memory.pop(number, ()):
                others = self._tensors[memory.data_ptr()]
                others.discard(number)
                if not others and memory.data_ptr() not in self._lasting and memory.data_ptr() not in again:
                    memory.resize_(0)
                    freed.append(memory)
        return freed

    def _put(self, number: int, x: torch.Tensor) -> None:
        memory = x.untyped_storage()
        if memory.nbytes() > 0 and number not in self._tensors[memory.data_ptr()]:
            self._tensors[memory.data_ptr()].add(number)
            self._memory[number].append(memory)
