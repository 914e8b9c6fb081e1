"""Collectives between processes: those of the executor, and what overlapping them with computation really costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from calibrate.cases import COLLECTIVES, ONE_WAY
from calibrate.method import Sample, Timing
from validate.allocations import keep_memory
from validate.executor import Executor
from validate.launch import Rank, RankPool
from validate.mesh import Mesh

AXIS = "context"

#: Of a rank's larger buffer, coarse to fine.
BYTES = (2**10, 2**25, 2**18, 2**22, 2**14, 2**20, 2**16, 2**24, 2**12, 2**28)

#: Samples of one message size, at most and at least.
MOST, FEWEST = 60, 5

#: Messages of fewer bytes are sent several times for one sample.
MANY = 2**16


@dataclass(frozen=True)
class Message:
    """One collective at one size."""

    kernel: str
    bytes: int


@dataclass(frozen=True)
class Ranks:
    """Times collectives between the processes of a pool."""

    pool: RankPool

    @property
    def ranks(self) -> int:
        return self.pool.ranks

    def messages(self) -> Iterator[tuple[str, int]]:
        """Every collective at every size, all of them at one size before the next."""
        return ((kernel, size) for size in BYTES for kernel in (*COLLECTIVES, *ONE_WAY))

    def timed(self, kernel: str, size: int, budget_s: float) -> Timing:
        """Seconds of one collective: of the slowest rank in each sample.

        Raises:
            validate.launch.RankError: when a rank fails.
        """
        calls = max(1, math.ceil(MANY / size))
        message = Message(kernel, size)
        by_rank = self.pool.run(_samples, message, calls, budget_s, timeout_s=60 + 5 * budget_s)
        return Timing.of([Sample(max(each)) for each in zip(*by_rank, strict=True)], calls)

    def beside(self, size: int, budget_s: float) -> tuple[float, float, float]:
        """Seconds of a ring shift of so many bytes, of matrix products, and of both started together.

        Raises:
            validate.launch.RankError: when a rank fails.
        """
        by_rank = self.pool.run(_overlapped, size, budget_s, timeout_s=60 + 5 * budget_s)
        communication, computation, both = (max(times) for times in zip(*by_rank, strict=True))
        return communication, computation, both


def _executor(rank: Rank) -> Executor:
    keep_memory()  # or messages of 32 MB and more would be received into new pages each time
    return Executor(mesh=Mesh.of({AXIS: rank.size}, rank.index), timeout_s=rank.timeout_s)


def _work(rank: Rank, message: Message) -> Callable[[], object]:
    ops = _executor(rank)
    if message.kernel in ONE_WAY:
        return _one_way(rank, message)
    collective = COLLECTIVES[message.kernel]
    rows = -(-message.bytes // 4 // rank.size ** (2 if collective.shard else 1))
    x, primitive = torch.zeros(rank.size, rows), collective.make(ops.transport.mesh.axes[AXIS])
    return lambda: ops.apply(primitive, x)


def _one_way(rank: Rank, message: Message) -> Callable[[], object]:
    x = torch.zeros(message.bytes // 4)
    if message.kernel == "broadcast":
        return lambda: dist.broadcast(x, 0)
    return lambda: dist.send(x, 1) if rank.index == 0 else dist.recv(x, 0) if rank.index == 1 else None


def _seconds(work: Callable[[], object], calls: int = 1) -> float:
    """Of one call, all ranks starting together."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def _repeats(work: Callable[[], object], calls: int, budget_s: float) -> int:
    """As many samples as the budget holds, the same on all ranks."""
    _seconds(work, calls)
    slowest = torch.tensor(_seconds(work, calls), dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return min(MOST, max(FEWEST, int(budget_s / (float(slowest) * calls + 1e-4))))


def _samples(rank: Rank, message: Message, calls: int, budget_s: float) -> list[float]:
    work = _work(rank, message)
    return [_seconds(work, calls) for _ in range(_repeats(work, calls, budget_s))]


def _overlapped(rank: Rank, size: int, budget_s: float) -> tuple[float, float, float]:
    ops, x = _executor(rank), torch.zeros(size // 4)
    axis = ops.transport.mesh.axes[AXIS]

    def communicate() -> object:
        return ops.transport.shift(axis, [x]).finish()

    product = _product_like(_middle(communicate, budget_s / 4))

    def both() -> None:
        pending = ops.transport.shift(axis, [x])
        product()
        pending.finish()

    return tuple(_middle(work, budget_s / 4) for work in (communicate, product, both))  # type: ignore[return-value]


def _product_like(seconds: float) -> Callable[[], object]:
    """Matrix products that take about so long, on all ranks the same."""
    a = torch.rand(256, 256)
    shared = torch.tensor([seconds, _seconds(lambda: a @ a, 4)], dtype=torch.float64)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    times = max(1, round(float(shared[0] / shared[1])))

    def product() -> None:
        for _ in range(times):
            a @ a

    return product


def _middle(work: Callable[[], object], budget_s: float) -> float:
    """The median, as this rank sees it."""
    times = sorted(_seconds(work) for _ in range(_repeats(work, 1, budget_s)))
    return times[len(times) // 2]
