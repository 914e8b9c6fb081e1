"""A session of measuring: shapes in their order until the time is spent, each on the disk before the next.

Shapes are taken a round at a time, and each round several times over, so that the visits to one shape are some seconds
apart and one of them at least is likely to be undisturbed.

The time is that of the file, over all its sessions: a session goes on where the one before it ended.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product as combinations
from typing import Protocol

from calibrate.cases import ONE_WAY, program
from calibrate.host import HostCopy, host_copies
from calibrate.measurement import Measurement
from calibrate.method import Clock, Drift, Timing, Work, measure
from calibrate.shapes import Shape, bytes_of, rounds
from calibrate.store import Beside, Checked, Copied, Environment, Launched, Run, Store, key
from costmodel.ops.primitive import Reading
from costmodel.program import Fused, operations
from costmodel.units import parse_seconds

#: Messages, visits to them included, and pairs of communication and computation, in whose time a wire is measured.
MESSAGES, PAIRS = 240, 50

#: Copies between device and host that are measured in their time.
COPIES = 60

#: How often each shape is measured.
VISITS = 4

#: What one visit to a shape may take: a part of the whole time, between these seconds.
SHAPE_PART, SHAPE_S = 1 / 5000, (0.03, 0.12)

#: Calls that take longer than this part of the whole time, or these seconds, are not measured.
LONGEST_PART, LONGEST_S = 1 / 800, (0.05, 0.8)

#: Part of the memory that the tensors of one shape may take, and bytes at most.
MEMORY_PART, MEMORY_BYTES = 1 / 16, 2**29

#: A kernel that takes the device less time than the host.
SMALLEST = Shape("add", "fp32", {"n": 2**10})

#: What runs are for that are not fitted: several kernels together, or one way of a link.
CHECKED = ("vanilla_attention", *ONE_WAY)

#: Rates below any device's, by which it is told beforehand that a shape takes too long.
SLOW_FLOP_PER_S, SLOW_OP_PER_S, SLOW_BYTES_PER_S, SLOW_STEP_S = 3e10, 7e8, 4e9, 2e-5


def parse_budget(text: str) -> float:
    """Seconds of a budget; m is for minutes here.

    >>> parse_budget("5m"), parse_budget("90s")
    (300.0, 90.0)

    Raises:
        InputError: for what is no time.
    """
    return parse_seconds(re.sub(r"(?<=[\d.])\s*m$", "min", text.strip()), "--budget")


class Maker(Protocol):
    """What makes work to be timed (``calibrate.kernels.Bench``)."""

    def work(self, shape: Shape) -> Work: ...

    def reference(self) -> Work: ...


class Copier(Protocol):
    """What makes copies between device and host to be timed (``calibrate.kernels.Bench``)."""

    def copy(self, copy: HostCopy) -> Work: ...


class Wire(Protocol):
    """What times collectives (``calibrate.collectives``), in their order."""

    def messages(self) -> Iterator[Shape]: ...

    def timed(self, message: Shape, budget_s: float) -> Timing: ...


class Overlapping(Protocol):
    """What times collectives, computation, and both together, in their order."""

    def overlaps(self) -> Iterator[Shape]: ...

    def beside(self, message: Shape, budget_s: float) -> tuple[float, float, float]: ...


#: Told what is being measured, and which part of the time is spent.
Tell = Callable[[str, float], None]


def expected_s(shape: Shape) -> float:
    """Seconds of a call, about: whether to measure it at all."""
    row = _row(shape.kernel, shape.dtype, dict(shape.sizes), 1.0, "-", "-", "")
    total = 0.0
    for operation, times in operations(program(row, 1).forward):
        flops = operation.flops(Reading.EXECUTED)
        products = float(flops.get("contraction", 0))
        others = sum(float(value) for kind, value in flops.items() if kind != "contraction")
        total += float(times) * (products / SLOW_FLOP_PER_S + others / SLOW_OP_PER_S)
        total += float(times) * float(sum(operation.traffic())) / SLOW_BYTES_PER_S
        if isinstance(operation, Fused):
            total += float(operation.repeat) * len(operation.body.nodes) * SLOW_STEP_S
    return total


def _row(
    kernel: str, dtype: str, sizes: Mapping[str, int], seconds: float, device: str, source: str, date: str
) -> Measurement:
    use = "check" if kernel in CHECKED else "fit"
    return Measurement(
        device=device,
        kernel=kernel,
        implementation="torch",
        dtype=dtype,
        sizes={name: float(size) for name, size in sizes.items()},
        seconds=seconds,
        quantity="time",
        transport="",
        source=source,
        url="",
        date=date,
        command="costmodel calibrate",
        use=use,
        notes="",
    )


@dataclass
class Session:
    """Measures one device until the time is spent.

    Attributes:
        environment: of this session; the store has it already.
        device: name of the profile that is to be fitted.
        budget_s: for everything in the file.
    """

    store: Store
    environment: Environment
    device: str
    budget_s: float
    maker: Maker
    clock: Clock
    tell: Tell
    visits: Counter[str] = field(default_factory=Counter)
    _start: float = 0.0

    def __post_init__(self) -> None:
        self._start = self.clock.now() - self.store.found.spent_s
        self._began = self.clock.now()
        self.visits.update(key(run.measurement) for run in self.store.found.runs)

    @property
    def spent_s(self) -> float:
        """Seconds of this and earlier sessions."""
        return self.clock.now() - self._start

    def kernels(self, dtypes: Sequence[str], part: float) -> None:
        """Kernels in their order until this part of the time is spent."""
        drift, end = Drift(self.maker.reference(), self.clock), part * self.budget_s
        for shape in self._shapes(dtypes):
            if self.spent_s >= end:
                break
            if drift.due():
                timing = drift.check()
                self.store.add(Checked(self.environment.id, self._at_s, drift.ratios[-1], timing))
            self.tell(f"{shape.kernel} {shape.dtype}", self.spent_s / self.budget_s)
            timing = measure(self.maker.work(shape), self.clock, self._within(SHAPE_PART, SHAPE_S))
            self._keep(shape.kernel, shape.dtype, dict(shape.sizes), timing)

    def launches(self, clock: Clock) -> None:
        """How long the host takes to hand over a kernel, unless that is known.

        Args:
            clock: of the host.
        """
        if not self.store.found.launches:
            timing = measure(self.maker.work(SMALLEST), clock, SHAPE_S[1])
            self.store.add(Launched(self.environment.id, self._at_s, timing))

    def copies(self, copier: Copier, part: float, end: float) -> None:
        """Copies between device and host in their order, for a part of the time that ends at another."""
        known = {(copied.way, copied.pinned, copied.bytes) for copied in self.store.found.copies}
        share = part * self.budget_s / COPIES
        for copy in host_copies():
            if self.spent_s >= end * self.budget_s:
                return
            if (copy.way, copy.pinned, copy.bytes) not in known:
                self.tell(f"copy {copy.bytes} bytes {copy.way}", self.spent_s / self.budget_s)
                timing = measure(copier.copy(copy), self.clock, share)
                self.store.add(Copied(self.environment.id, self._at_s, copy.way, copy.pinned, copy.bytes, timing))

    def collectives(self, wire: Wire, part: float, end: float) -> None:
        """Collectives in their order, several times over, for a part of the time that ends at another.

        Those that take longer than their share are as well known after one visit.
        """
        share = part * self.budget_s / MESSAGES
        for visit, message in combinations(range(VISITS), wire.messages()):
            if self.spent_s >= end * self.budget_s:
                return
            if self._visited(message.kernel, message.dtype, message.sizes) > visit:
                continue
            self.tell(f"{message.kernel} {message.sizes['bytes']} bytes", self.spent_s / self.budget_s)
            timing = wire.timed(message, share)
            self._keep(message.kernel, message.dtype, dict(message.sizes), timing)
            if sum(timing.samples) * timing.calls > 2 * share:
                self.visits[key(self._row(message.kernel, message.dtype, message.sizes))] += VISITS

    def overlaps(self, wire: Overlapping, part: float, end: float) -> None:
        """Collectives beside computation in their order, for a part of the time that ends at another."""
        known = {(beside.what, beside.bytes) for beside in self.store.found.overlaps}
        share = part * self.budget_s / PAIRS
        for message in wire.overlaps():
            if self.spent_s >= end * self.budget_s:
                return
            if (message.kernel, message.sizes["bytes"]) not in known:
                self.tell(f"{message.kernel} beside products", self.spent_s / self.budget_s)
                times = wire.beside(message, share)
                pair = message.kernel, message.sizes["bytes"]
                self.store.add(Beside(self.environment.id, self._at_s, *pair, *times))

    def _shapes(self, dtypes: Sequence[str]) -> Iterator[Shape]:
        """Those that are not too large, each as often as it is measured; without visits of earlier sessions."""
        memory = min(MEMORY_PART * self.environment.memory_bytes, MEMORY_BYTES)
        longest = self._within(LONGEST_PART, LONGEST_S)
        for turn in rounds(dtypes):
            fitting = [shape for shape in turn if bytes_of(shape) <= memory and expected_s(shape) <= longest]
            for visit, shape in combinations(range(VISITS), fitting):
                if self._visited(shape.kernel, shape.dtype, shape.sizes) <= visit:
                    yield shape

    def _within(self, part: float, limits: tuple[float, float]) -> float:
        return min(max(part * self.budget_s, limits[0]), limits[1])

    def _visited(self, kernel: str, dtype: str, sizes: Mapping[str, int]) -> int:
        return self.visits[key(self._row(kernel, dtype, sizes))]

    def _row(self, kernel: str, dtype: str, sizes: Mapping[str, int]) -> Measurement:
        return _row(kernel, dtype, sizes, 1.0, self.device, "-", "")

    @property
    def _at_s(self) -> float:
        return self.clock.now() - self._began

    def _keep(self, kernel: str, dtype: str, sizes: dict[str, int], timing: Timing) -> None:
        source, date = self.environment.device, self.environment.date[:10]
        row = _row(kernel, dtype, sizes, timing.seconds, self.device, source, date)
        self.store.add(Run(self.environment.id, self._at_s, row, timing))
        self.visits[key(row)] += 1
