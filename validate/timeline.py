"""What a rank did when: its kernels, its messages, and how long it stood waiting for them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from costmodel.ops.communication import Communication
from costmodel.ops.mesh import Axis
from costmodel.ops.primitive import Primitive
from validate.communication import Pending, Transport
from validate.executor import Executor


@dataclass(frozen=True)
class Span:
    """A stretch of a rank's time, in seconds by its own steady clock.

    Attributes:
        kind: ``kernel``; ``post``, where messages are handed over and not waited for; ``wait``, for those that were.
        name: of the primitive, or what is sent.
    """

    kind: str
    name: str
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


class Timed(Executor):
    """An executor that notes when it does what; for CPUs, where a kernel has run when its call returns.

    Attributes:
        spans: in the order in which they ended.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spans: list[Span] = []
        self.transport = _TimedTransport(self.transport, self.spans)

    def apply(self, primitive: Primitive, *inputs: Tensor) -> tuple[Tensor, ...]:
        if isinstance(primitive, Communication):
            return super().apply(primitive, *inputs)
        start = time.perf_counter()
        outputs = super().apply(primitive, *inputs)
        self.spans.append(Span("kernel", type(primitive).__name__, start, time.perf_counter()))
        return outputs


class _TimedTransport(Transport):
    def __init__(self, plain: Transport, spans: list[Span]) -> None:
        self.__dict__.update(plain.__dict__)
        self._spans = spans

    def exchange(
        self, axis: Axis, hop: int, what: str, outgoing: Sequence[Tensor], incoming: Sequence[Tensor]
    ) -> Pending:
        start = time.perf_counter()
        pending = super().exchange(axis, hop, what, outgoing, incoming)
        self._spans.append(Span("post", what, start, time.perf_counter()))
        return _TimedPending(pending, what, self._spans)


class _TimedPending(Pending):
    def __init__(self, plain: Pending, what: str, spans: list[Span]) -> None:
        self.__dict__.update(plain.__dict__)
        self._what, self._spans = what, spans

    def _wait(self, works: list[Any], direction: str, peer: int) -> None:
        start, there = time.perf_counter(), bool(works)
        super()._wait(works, direction, peer)
        if there:
            self._spans.append(Span("wait", self._what, start, time.perf_counter()))


def waiting(spans: Sequence[Span]) -> float:
    """Seconds in which a rank stood still for messages: communication that was not hidden."""
    return sum(span.seconds for span in spans if span.kind == "wait")
