"""How a run is timed: warm-up, a clock for each kind of device, repetitions until the median is known, drift.

A sample is the mean of enough calls to be long beside the clock's own time. Samples are taken until the median's
interval is narrow, or the fastest was reached several times, or the time given for the shape is spent; all of them are
kept, and those that something else disturbed are marked. Nothing here imports torch, except a clock for a CUDA device
when it is made.

A core shares its execution units and caches with neighbours that a virtual machine does not see, in spells of seconds
that make short kernels up to 2.4 times as slow, and never faster. On a CPU a shape is therefore measured at several
times, and the fastest sample of all is what it takes.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Work = Callable[[], object]

#: A sample takes at least this long, so that neither the clock's resolution nor its own time matters.
SHORTEST_S = 4e-4

#: Seconds of running before anything is timed, and calls at least: pages, caches and clocks settle.
WARM_S = 2e-3
WARM_CALLS = 2

#: Samples are taken until the median's 95 % interval is at most this wide to either side, relative to the median.
NARROW = 0.01

#: Samples without which nothing is said of the spread, and with which no more are taken.
FEWEST, MOST = 7, 400

#: A sample is disturbed where other work had the processor for more than this part of it.
STOLEN = 0.05

#: Clock cycles, some 50 us, that a GPU waits for each call of a sample, in which the host hands it over.
AHEAD = 100_000

#: Samples further from the median than so many scaled median deviations are outliers.
OUTLYING = 5.0

#: Scales a median deviation to the standard deviation of a normal distribution.
NORMAL = 1.4826


@dataclass(frozen=True)
class Sample:
    """Mean seconds of one call, and whether other work took the device meanwhile, as far as the clock can tell."""

    seconds: float
    disturbed: bool = False


class Clock(ABC):
    """Times calls on one kind of device."""

    #: What the clock is, for those who read a measurement.
    name: str

    #: Whether what disturbs the device only ever makes it slower, so that the fastest sample is the least disturbed.
    slowed: bool = True

    @abstractmethod
    def sample(self, work: Work, calls: int) -> Sample:
        """The mean of that many calls in a row."""

    def now(self) -> float:
        """Seconds on a monotonic clock, for budgets."""
        return time.monotonic()


class WallClock(Clock):
    """A monotonic clock: for work on several threads or with other processes, which waits as part of what it does."""

    name = "monotonic"

    def sample(self, work: Work, calls: int) -> Sample:
        start = time.perf_counter_ns()
        for _ in range(calls):
            work()
        return Sample((time.perf_counter_ns() - start) * 1e-9 / calls)


class ThreadClock(Clock):
    """Processor time of this thread, for work on one thread that never waits: on an idle machine the monotonic time.

    Beside it the monotonic clock says whether others had the processor in between (and so the caches).
    """

    name = "processor time of one thread"

    def sample(self, work: Work, calls: int) -> Sample:
        wall, own = time.perf_counter_ns(), time.thread_time_ns()
        for _ in range(calls):
            work()
        own = time.thread_time_ns() - own
        wall = time.perf_counter_ns() - wall
        return Sample(own * 1e-9 / calls, wall - own > STOLEN * wall)


class CudaClock(Clock):
    """Events on the current stream: time on the device, which waits until the host has handed the work to it."""

    name = "CUDA events"
    slowed = False  # its own clock rises and falls with the heat

    def __init__(self) -> None:
        import torch

        self._cuda: Any = torch.cuda

    def sample(self, work: Work, calls: int) -> Sample:
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._cuda._sleep(calls * AHEAD)
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        return Sample(start.elapsed_time(end) * 1e-3 / calls)


@dataclass(frozen=True)
class Timing:
    """What was found of one piece of work.

    Attributes:
        seconds: of one call: the median of the samples that nothing disturbed, of all where these are too few.
        half_width: of the median's 95 % interval, relative to it; ``None`` with too few samples to tell.
        samples: seconds of one call, in the order in which they were taken.
        disturbed: places of samples during which other work had the processor.
        outliers: places of samples far from the median.
        calls: in a row, of one sample.
    """

    seconds: float
    half_width: float | None
    samples: tuple[float, ...]
    disturbed: tuple[int, ...]
    outliers: tuple[int, ...]
    calls: int

    @classmethod
    def of(cls, samples: Sequence[Sample], calls: int) -> Timing:
        """The median of some samples, and what is unusual among them."""
        quiet = [sample.seconds for sample in samples if not sample.disturbed]
        used = sorted(quiet if len(quiet) >= FEWEST else [sample.seconds for sample in samples])
        middle = statistics.median(used)
        deviation = NORMAL * statistics.median(abs(x - middle) for x in used)
        return cls(
            middle,
            half_width(used),
            tuple(sample.seconds for sample in samples),
            tuple(place for place, sample in enumerate(samples) if sample.disturbed),
            tuple(n for n, sample in enumerate(samples) if abs(sample.seconds - middle) > OUTLYING * deviation > 0),
            calls,
        )


def half_width(ordered: Sequence[float]) -> float | None:
    """Of the 95 % interval of the median of samples in ascending order, relative to it; ``None`` of fewer than six.

    The interval is between two order statistics, whatever the distribution (Conover, Practical Nonparametric
    Statistics, section 3.2): the median lies below the k-th of n samples with the probability that fewer than k of n
    fair coins show heads.

    >>> half_width([1.0, 1.0, 1.0, 1.0, 1.0]), half_width([0.9, 1.0, 1.0, 1.0, 1.0, 1.2])
    (None, 0.1499...)
    """
    count, outside, rank = len(ordered), 0.0, 0
    while rank < count // 2:
        outside += math.comb(count, rank) / 2**count
        if outside > 0.025:
            break
        rank += 1
    if rank == 0:
        return None
    return (ordered[count - rank] - ordered[rank - 1]) / 2 / statistics.median(ordered)


def measure(work: Work, clock: Clock, budget_s: float) -> Timing:
    """Time a piece of work for at most about ``budget_s``, and less where the median is known sooner.

    Work that alone takes longer than the budget is timed once, after one call that is thrown away.
    """
    deadline = clock.now() + budget_s
    estimate, warm = 0.0, 0
    while warm < WARM_CALLS or warm * estimate < WARM_S:
        estimate = max(clock.sample(work, 1).seconds, 1e-9)
        warm += 1
        if clock.now() >= deadline:
            break
    calls = max(1, math.ceil(SHORTEST_S / estimate))
    samples: list[Sample] = []
    while not samples or (clock.now() < deadline and len(samples) < MOST):
        samples.append(clock.sample(work, calls))
        if len(samples) >= FEWEST and (_known(samples) or (clock.slowed and _reached(samples))):
            break
    return Timing.of(samples, calls)


def _reached(samples: Sequence[Sample]) -> bool:
    """Whether several samples are about as fast as the fastest."""
    fastest = min(sample.seconds for sample in samples)
    return sum(sample.seconds <= (1 + NARROW) * fastest for sample in samples) >= FEWEST


def _known(samples: Sequence[Sample]) -> bool:
    quiet = sorted(sample.seconds for sample in samples if not sample.disturbed)
    width = half_width(quiet)
    return len(quiet) >= FEWEST and width is not None and width <= NARROW


def rotating(function: Callable[..., object], operands: Sequence[tuple[Any, ...]]) -> Work:
    """Calls with one set of operands after the other, so that no call finds its own in a cache."""
    turn: Iterator[tuple[Any, ...]] = itertools.cycle(operands)
    return lambda: function(*next(turn))


@dataclass
class Drift:
    """The same piece of work timed now and then: whether the device is as fast as it was at first.

    Attributes:
        every_s: between two such timings.
        ratios: of each to the first.
    """

    work: Work
    clock: Clock
    every_s: float = 5.0
    ratios: list[float] = field(default_factory=list)
    _first: float = 0.0
    _last: float = -math.inf

    def due(self) -> bool:
        """Whether it is time for the next."""
        return self.clock.now() - self._last >= self.every_s

    def check(self, budget_s: float = 0.1) -> Timing:
        """Time it once more."""
        found = measure(self.work, self.clock, budget_s)
        self._first = self._first or found.seconds
        self._last = self.clock.now()
        self.ratios.append(found.seconds / self._first)
        return found
