"""What a run holds between its operations: every piece of memory followed from its birth to its end, to the byte.

The formulas of memory (``costmodel.liveness``) say what operations leave for each other. So pieces are added up as
each operation of the vocabulary ends; what its kernel needed for itself in between is the allocator's to tell
(``validate.allocations``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from validate.executor import Executor
from validate.releasing import Memory


@dataclass
class Piece:
    """A piece of memory: the marks between which it was there."""

    reference: StorageWeakRef
    bytes: int
    made_by: str
    born: int
    died: int | None = None


class Live(TorchDispatchMode):
    """Follows the memory of all tensors that operations make, but for those that are held anyway.

    Args:
        without: tensors (weights, tables) that are not counted.
    """

    def __init__(self, without: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.pieces: list[Piece] = []
        self.marks: list[str] = []
        self._alive: dict[int, Piece] = {}
        self._without = {x.untyped_storage()._cdata for x in without}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_iter(result):
            if isinstance(x, Tensor):
                self.note(x, str(func))
        return result

    def note(self, x: Tensor, made_by: str) -> None:
        """Count a tensor's memory from here on."""
        if x.device.type == "meta":
            return
        storage = x.untyped_storage()
        place = storage._cdata
        known = self._alive.get(place)
        if place in self._without or (known is not None and not known.reference.expired()):
            return
        if known is not None:
            known.died = len(self.marks)
        self._alive[place] = Piece(StorageWeakRef(storage), storage.nbytes(), made_by, len(self.marks))
        self.pieces.append(self._alive[place])

    def mark(self, what: str) -> None:
        """An operation has ended."""
        for place in [place for place, piece in self._alive.items() if piece.reference.expired()]:
            self._alive.pop(place).died = len(self.marks)
        self.marks.append(what)

    def freed(self, memories: Sequence[Memory]) -> None:
        """Memory that has been given back, though there still are tensors in it."""
        for memory in memories:
            if piece := self._alive.pop(memory._cdata, None):
                piece.died = len(self.marks)

    def held(self, at: int, without: Sequence[Tensor] = ()) -> list[Piece]:
        """What was there at a mark, but for what these tensors (gradients of weights) are."""
        left_out = {x.untyped_storage()._cdata for x in without}
        return [
            piece
            for piece in self.pieces
            if piece.born <= at and (piece.died is None or piece.died > at) and piece.reference.cdata not in left_out
        ]

    def peak(self, without: Sequence[Tensor] = ()) -> tuple[int, int]:
        """The most bytes held at a mark, and which mark."""
        every = [sum(piece.bytes for piece in self.held(at, without)) for at in range(len(self.marks))]
        return max(every), every.index(max(every))


class Remembering(Executor):
    """An executor that marks the end of every operation; what a fused kernel does inside is one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.live: Live | None = None
        self._inside = 0

    def ended(self, what: str, made: Sequence[Tensor], reused: Sequence[Tensor] = ()) -> list[Memory]:
        if self.live is not None and not self._inside:
            self.live.mark(what)
        freed = super().ended(what, made, reused)
        if self.live is not None:
            self.live.freed(freed)
        return freed

    @contextmanager
    def as_one(self) -> Iterator[None]:
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


class Source(torch.autograd.Function):
    """A tensor that only the graph holds, as a layer's input is that another layer made."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, make: Callable[[], Tensor]) -> Tensor:
        return make()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_zeros(0), None


class Sink(torch.autograd.Function):
    """An end that holds no output, and gives the gradient that another layer would."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, make: Callable[[], Tensor]) -> Tensor:
        ctx.make = make
        return out.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.make(), None
