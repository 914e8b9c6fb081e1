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
from calibrate.measurement import Measurement
from calibrate.method import Clock, Drift, Timing, Work, measure
from calibrate.shapes import Shape, bytes_of, rounds
from calibrate.store import Beside, Checked, Environment, Run, Store, key
from costmodel.ops.primitive import Reading
from costmodel.program import Fused, operations
from costmodel.units import parse_seconds

#: Part of the time that is for collectives.
COLLECTIVE_PART = 0.15

#: How often each shape is measured.
VISITS = 4

#: What one visit to a shape may take: a part of the whole time, between these seconds.
SHAPE_PART, SHAPE_S = 1 / 5000, (0.03, 0.12)

#: Calls that take longer than this part of the whole time, or these seconds, are not measured.
LONGEST_PART, LONGEST_S = 1 / 800, (0.05, 0.8)

#: Part of the memory that the tensors of one shape may take, and bytes at most.
MEMORY_PART, MEMORY_BYTES = 1 / 16, 2**29

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


class Wire(Protocol):
    """What times collectives (``calibrate.collectives``), one after the other; closed in the end."""

    def messages(self) -> Iterator[tuple[str, int]]: ...

    def timed(self, kernel: str, size: int, budget_s: float) -> Timing: ...

    def beside(self, size: int, budget_s: float) -> tuple[float, float, float]: ...

    @property
    def ranks(self) -> int: ...


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

    def collectives(self, wire: Wire) -> None:
        """Collectives in their order until the time is spent."""
        share = COLLECTIVE_PART * self.budget_s / 60
        for kernel, size in wire.messages():
            if self.spent_s >= self.budget_s:
                return
            sizes = {"P": wire.ranks, "bytes": size}
            if self._visited(kernel, "fp32", sizes):
                continue
            self.tell(f"{kernel} {size} bytes", self.spent_s / self.budget_s)
            self._keep(kernel, "fp32", sizes, wire.timed(kernel, size, share))
            if kernel == "ring_shift" and self.spent_s < self.budget_s:
                times = wire.beside(size, 2 * share)
                self.store.add(Beside(self.environment.id, self._at_s, kernel, size, *times))

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
        return self.visits[key(_row(kernel, dtype, sizes, 1.0, self.device, "-", ""))]

    @property
    def _at_s(self) -> float:
        return self.clock.now() - self._began

    def _keep(self, kernel: str, dtype: str, sizes: dict[str, int], timing: Timing) -> None:
        source, date = self.environment.device, self.environment.date[:10]
        row = _row(kernel, dtype, sizes, timing.seconds, self.device, source, date)
        self.store.add(Run(self.environment.id, self._at_s, row, timing))
        self.visits[key(row)] += 1
