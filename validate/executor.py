"""The op vocabulary on real tensors: what a method says is done, on as many ranks as its mesh has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from costmodel.dims import Shape
from costmodel.errors import InputError
from costmodel.ops.mesh import Axis
from costmodel.ops.primitive import Primitive
from costmodel.ops.scan import Operands, Recurrence
from validate import kernels
from validate.communication import Pending, Transport
from validate.mesh import Mesh
from validate.one_rank import OneRank
from validate.releasing import Memory, Releasing, Step
from validate.reverse import pulled_back, recomputed, recorded, scanned, stated


class NotFiniteError(RuntimeError):
    """A value that is no finite number."""


class Executor(OneRank[Tensor]):
    """Runs a method; differentiable by autograd.

    Args:
        dtype: of the model. Accumulation is in float32, or float64 for a float64 model.
        mesh: the ranks, as this one sees them; by default there is only this one.
        gradient: dtype of gradients on the wire: that of the model, or that of accumulation, which it is by default.
        flash: whether fused attention may use torch's flash kernels; otherwise it materialises the scores.
        timeout_s: seconds to wait for any one message.
        finite: whether every result, and every block that a ring passes on, is looked through for values that are not
            numbers or are infinite; minus infinity is left alone, which is the score of what a mask hides.

    Raises:
        InputError: for gradients of another dtype.
        NotFiniteError: from its operations, if ``finite``, naming the rank, the operation or the step of the ring, and
            whose block it was.

    Attributes:
        transport: sends the messages; its ``sent`` is what this rank sent so far.
    """

    tile = 1  # of no consequence: real kernels choose their own

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        mesh: Mesh | None = None,
        *,
        gradient: torch.dtype | None = None,
        flash: bool = True,
        timeout_s: float = 60.0,
        device: torch.device | str = "cpu",
        finite: bool = False,
    ) -> None:
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        if gradient not in (None, dtype, accumulate):
            allowed = " or ".join(dict.fromkeys(str(each) for each in (dtype, accumulate)))
            raise InputError("gradient", gradient, f"gradients of a {dtype} layer travel in {allowed}")
        self.dtypes = {"model": dtype, "accumulate": accumulate, "gradient": gradient or accumulate}
        self.flash, self.device = flash, torch.device(device)
        self.transport = Transport(mesh or Mesh(), timeout_s)
        self._finite, self._done = finite, 0
        self._releasing: Releasing | None = None

    def shape(self, x: Tensor) -> Shape:
        return tuple(x.shape)

    def width(self, precision: str) -> int:
        return self.dtypes[precision].itemsize

    def precision(self, x: Tensor) -> str:
        return next(name for name, dtype in self.dtypes.items() if dtype == x.dtype)

    def apply(self, primitive: Primitive, *inputs: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            outputs = recorded(self, primitive, *inputs)
        else:
            outputs = kernels.run(primitive, self, inputs)
            self.look_through(type(primitive).__name__, outputs)
        self.ended(type(primitive).__name__, outputs)
        return outputs

    @contextmanager
    def releasing(self, releasing: Releasing | None) -> Iterator[None]:
        """Within, memory is freed as a rehearsal found that it can be, if there was one."""
        outer, self._releasing = self._releasing, releasing
        try:
            yield
        finally:
            self._releasing = outer

    def ended(self, what: str, made: Sequence[Tensor], reused: Sequence[Tensor] = ()) -> list[Memory]:
        """An operation has ended that gave these tensors: what was freed, but ``reused`` ones, which are not."""
        return [] if self._releasing is None else self._releasing.ended(what, made, reused)

    def saves(self, tensors: Sequence[Tensor]) -> tuple[Step, ...] | None:
        """Autograd keeps these tensors: what an algorithm's own backward will do with them, if that is known."""
        if self._releasing is None:
            return None
        self._releasing.keep(tensors)
        return self._releasing.backward

    def look_through(self, what: str, tensors: Sequence[Tensor]) -> None:
        """Refuse values that are no finite numbers, if asked to.

        Raises:
            NotFiniteError: for the first that is none.
        """
        if not self._finite:
            return
        self._done += 1
        for x in tensors:
            if x.is_floating_point() and (x.isnan().any() or x.isposinf().any()):
                kind = "NaN" if x.isnan().any() else "infinity"
                rank = self.transport.mesh.rank
                raise NotFiniteError(f"rank {rank}: {kind} in the result of {what}, operation {self._done}")

    def cast(self, x: Tensor, precision: str) -> Tensor:
        return x if x.dtype == self.dtypes[precision] else super().cast(x, precision)

    def fused(self, name: str, body: Callable[..., Any], *inputs: Tensor, family: str = "elementwise") -> Any:
        result = recomputed(self, body, *inputs)
        self.ended(name, result if isinstance(result, tuple) else (result,))
        return result

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """Around operations that are one kernel where kernels are fused; of interest to those who watch."""
        yield

    @contextmanager
    def as_loop(self) -> Iterator[None]:
        """Around operations that are one kernel, which goes through them many times: none of them ends anything."""
        with self.releasing(None), self.as_one():
            yield

    def custom(self, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Tensor) -> Any:
        result = stated(self, forward, backward, *inputs)
        if torch.is_grad_enabled():
            self.ended("saved", ())
        return result

    def hand_over(
        self, axis: Axis, what: str, hop: int, sent: tuple[Tensor, ...], like: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        given = tuple(x.clone(memory_format=torch.contiguous_format) for x in like)
        self.transport.neighbours(axis, what, {hop: [x.contiguous() for x in sent]}, {-hop: given})
        self.ended(what, given)
        return given

    def scan(
        self,
        loop: Recurrence,
        state: tuple[Tensor, ...],
        xs: tuple[Tensor, ...],
        constants: tuple[Tensor, ...] = (),
        axis: int = 0,
        reverse: bool = False,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        given = Operands(state, xs, constants, axis, reverse)
        results = scanned(self, loop, given)
        self.ended(loop.name, results)
        return results[: len(state)], results[len(state) :]

    def pull_back(
        self, method: Callable[..., Any], inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        with self.releasing(None):
            found = pulled_back(method, inputs, gradients)
        self.ended("pull back", found)
        return found

    def rotate(
        self, axis: Axis, blocks: tuple[Tensor, ...], accumulators: tuple[Tensor, ...] = ()
    ) -> Iterator[tuple[int, tuple[Tensor, ...], Travelling]]:
        travelling, spare = Travelling(self, axis, accumulators), None

        def owner(step: int) -> int:
            return self.transport.mesh.line(axis.name)[self.visiting(axis, step)]

        for step in range(axis.size):
            following = None
            if step < axis.size - 1:
                following = self.transport.shift(axis, blocks, f"ring step {step}, blocks", spare)
                self.ended("RingShift", following.received)
            if step > 0:
                travelling.shift(f"ring step {step}, accumulators")
            self.look_through(f"ring step {step} along axis '{axis.name}', the block of rank {owner(step)}", blocks)
            yield step, blocks, travelling
            travelling.settle()
            reused = blocks if 0 < step < axis.size - 2 else ()  # the first are the caller's, the last but one the last
            if following is not None:
                blocks, spare = following.finish(), reused or None
            self.ended("ring step", (), (*reused, *travelling.spare))


class Travelling:
    """Accumulators on their way round a ring: sent on while the next step computes (``Vocabulary.rotate``).

    What has been sent is the memory that is received in next.
    """

    def __init__(self, ops: Executor, axis: Axis, accumulators: tuple[Tensor, ...]) -> None:
        self._ops, self._axis, self._at_hand = ops, axis, accumulators
        self._moving: Pending | None = None
        self._leaving: tuple[Tensor, ...] = ()
        self.spare: tuple[Tensor, ...] = ()

    def arrive(self) -> tuple[Tensor, ...]:
        if self._moving is not None:
            self._moving.receive()
        return self._at_hand

    def depart(self, *accumulators: Tensor) -> None:
        self._at_hand = accumulators

    def home(self) -> tuple[Tensor, ...]:
        self.shift("accumulators coming home from the ring")
        self.settle()
        self._ops.ended("home", ())
        return self._at_hand

    def shift(self, what: str) -> None:
        """Send on what is at hand; at hand is then, once it has arrived, what the previous rank sends."""
        if self._at_hand:
            self._leaving = self._at_hand
            self._moving = self._ops.transport.shift(self._axis, self._leaving, what, self.spare or None)
            self._at_hand, self.spare = self._moving.received, ()
            self._ops.ended("RingShift", self._at_hand)

    def settle(self) -> None:
        """Wait for everything that is on its way, also if the step's body never asked for it."""
        if self._moving is not None:
            self._moving.finish()
            self._moving = None
            self.spare = self._leaving if all(x.is_contiguous() for x in self._leaving) else ()
