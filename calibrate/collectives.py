"""Collectives between processes: those of the executor, several at once, and computation beside them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from calibrate.cases import COLLECTIVES, ONE_WAY, SEVERAL
from calibrate.method import Sample, Timing
from calibrate.shapes import Shape
from validate.executor import Executor
from validate.launch import Rank, RankPool
from validate.mesh import Mesh

AXIS = "context"

#: Of a rank's larger buffer, coarse to fine.
BYTES = (2**10, 2**25, 2**18, 2**22, 2**14, 2**20, 2**16, 2**24, 2**12, 2**28)

#: The same for what is run beside computation, where the shorter messages tell as much in less time.
BESIDE_BYTES = (2**20, 2**16, 2**22, 2**14, 2**24, 2**18, 2**12, 2**10, 2**25, 2**28)

#: Ranks of a group of which there are several at once.
PAIR = 2

#: Samples of one message size, at most and at least.
MOST, FEWEST = 60, 5

#: Messages of fewer bytes are sent several times for one sample, between GPUs: their host runs ahead of them.
MANY = 2**16

#: Elements that lie together in a tensor whose heads an all-to-all deals out.
HEAD = 16

#: Edge of the matrices that are multiplied beside communication: products long beside what starting them takes.
EDGE = {"cpu": 128, "cuda": 2048}

#: Communication that has been started: waits for its end.
Waiting = Callable[[], object]


@dataclass(frozen=True)
class Ranks:
    """Times collectives between all processes of a pool, alone and beside matrix products."""

    pool: RankPool

    def messages(self) -> Iterator[Shape]:
        """Every collective at every size, all of them at one size before the next."""
        return self._at(BYTES)

    def overlaps(self) -> Iterator[Shape]:
        """The same in the order in which they are run beside computation."""
        return self._at(BESIDE_BYTES)

    def _at(self, sizes: tuple[int, ...]) -> Iterator[Shape]:
        kernels = (*COLLECTIVES, *ONE_WAY)
        return (Shape(kernel, "fp32", {"P": self.pool.ranks, "bytes": size}) for size in sizes for kernel in kernels)

    def timed(self, message: Shape, budget_s: float) -> Timing:
        """Seconds of one collective: of the slowest rank in each sample.

        Raises:
            validate.launch.RankError: when a rank fails.
        """
        return _timed(self.pool, message, budget_s)

    def beside(self, message: Shape, budget_s: float) -> tuple[float, float, float]:
        """Seconds of one collective, of matrix products, and of both started together: medians of the slowest rank.

        Raises:
            validate.launch.RankError: when a rank fails.
        """
        by_rank = self.pool.run(_overlapped, message, budget_s, timeout_s=60 + 5 * budget_s)
        communication, computation, both = (max(times) for times in zip(*by_rank, strict=True))
        return communication, computation, both


@dataclass(frozen=True)
class Pairs:
    """Times collectives between two processes of a pool alone, and between all pairs of them at once."""

    pool: RankPool

    def messages(self) -> Iterator[Shape]:
        """Every collective at every size, by one pair and by all."""
        every = (1, self.pool.ranks // PAIR)
        return (
            Shape(kernel, "fp32", {"P": PAIR, "groups": groups, "bytes": size})
            for size in BYTES
            for kernel in SEVERAL
            for groups in every
        )

    def timed(self, message: Shape, budget_s: float) -> Timing:
        """As ``Ranks.timed``."""
        return _timed(self.pool, message, budget_s)


def _timed(pool: RankPool, message: Shape, budget_s: float) -> Timing:
    by_rank = pool.run(_samples, message, budget_s, timeout_s=60 + 5 * budget_s)
    calls = by_rank[0][0]
    return Timing.of([Sample(max(each)) for each in zip(*(samples for _, samples in by_rank), strict=True)], calls)


# On each rank ---------------------------------------------------------------------------------------------------------


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def _executor(rank: Rank, size: int) -> Executor:
    """For collectives of groups of so many ranks that follow each other."""
    mesh = Mesh.of({"data": rank.size // size, AXIS: size}, rank.index)
    return Executor(mesh=mesh, timeout_s=rank.timeout_s, device=_device())


def _operand(message: Shape) -> Tensor:
    """What a rank gives to a collective, of which its larger buffer has the message's bytes."""
    ranks, elements = message.sizes["P"], message.sizes["bytes"] // 4
    collective = COLLECTIVES[SEVERAL.get(message.kernel, message.kernel)]
    if collective.heads:  # single columns would be copied as a transposed matrix is, which is far slower
        return torch.zeros(2 * ranks, -(-elements // (2 * ranks * HEAD)), HEAD, device=_device())
    return torch.zeros(ranks, -(-elements // ranks ** (2 if collective.shard else 1)), device=_device())


def _work(rank: Rank, message: Shape) -> Callable[[], object]:
    ranks = message.sizes["P"]
    if message.kernel in ONE_WAY:
        return _one_way(rank, message)
    if rank.index >= ranks * message.sizes.get("groups", 1):
        return lambda: None
    ops, collective = _executor(rank, ranks), COLLECTIVES[SEVERAL.get(message.kernel, message.kernel)]
    x, primitive = _operand(message), collective.make(ops.transport.mesh.axes[AXIS])
    return lambda: ops.apply(primitive, x)


def _one_way(rank: Rank, message: Shape) -> Callable[[], object]:
    x = torch.zeros(message.sizes["bytes"] // 4, device=_device())
    if message.kernel == "broadcast":
        return lambda: dist.broadcast(x, 0)
    return lambda: dist.send(x, 1) if rank.index == 0 else dist.recv(x, 0) if rank.index == 1 else None


def _settled() -> None:
    if _device() == "cuda":
        torch.cuda.synchronize()


def _seconds(work: Callable[[], object], calls: int = 1) -> float:
    """Of one call, all ranks starting together."""
    dist.barrier()
    _settled()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    _settled()
    return (time.perf_counter() - start) / calls


def _slowest(seconds: float) -> float:
    """Of all ranks."""
    found = torch.tensor(seconds, dtype=torch.float64, device=_device())
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return float(found)


def _repeats(work: Callable[[], object], calls: int, budget_s: float) -> int:
    """As many samples as the budget holds, the same on all ranks."""
    _seconds(work, calls)
    slowest = _slowest(_seconds(work, calls))
    return min(MOST, max(FEWEST, int(budget_s / (slowest * calls + 1e-4))))


def _samples(rank: Rank, message: Shape, budget_s: float) -> tuple[int, list[float]]:
    """Calls of one sample, and the samples."""
    work = _work(rank, message)
    calls = max(1, math.ceil(MANY / message.sizes["bytes"])) if _device() == "cuda" else 1
    return calls, [_seconds(work, calls) for _ in range(_repeats(work, calls, budget_s))]


# Beside computation ---------------------------------------------------------------------------------------------------


def _overlapped(rank: Rank, message: Shape, budget_s: float) -> tuple[float, float, float]:
    with _starter(rank, message) as start:

        def communicate() -> None:
            start()()

        product = _product_like(_middle(communicate, budget_s / 4), budget_s / 20)

        def both() -> None:
            wait = start()
            product()
            wait()

        return _middle(communicate, budget_s / 4), _middle(product, budget_s / 4), _middle(both, budget_s / 4)


@contextmanager
def _starter(rank: Rank, message: Shape) -> Iterator[Callable[[], Waiting]]:
    """Starts a collective while this thread goes on: a ring shift as rings do, others on their own stream or thread."""
    if message.kernel == "ring_shift":
        ops, x = _executor(rank, rank.size), _operand(message)
        yield lambda: ops.transport.shift(ops.transport.mesh.axes[AXIS], [x]).finish
        return
    work = _work(rank, message)
    if _device() == "cuda":
        stream = torch.cuda.Stream()
        yield lambda: _on_stream(stream, work)
        return
    with ThreadPoolExecutor(1) as thread:
        yield lambda: thread.submit(work).result


def _on_stream(stream: torch.cuda.Stream, work: Callable[[], object]) -> Waiting:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    return lambda: torch.cuda.current_stream().wait_stream(stream)


def _product_like(seconds: float, budget_s: float) -> Callable[[], object]:
    """Matrix products that take about so long, on all ranks the same number."""
    edge = EDGE[_device()]
    a = torch.rand(edge, edge, device=_device())
    times = max(1, round(_slowest(seconds) / _slowest(_middle(lambda: a @ a, budget_s))))

    def product() -> None:
        for _ in range(times):
            a @ a

    return product


def _middle(work: Callable[[], object], budget_s: float) -> float:
    """The median, as this rank sees it."""
    times = sorted(_seconds(work) for _ in range(_repeats(work, 1, budget_s)))
    return times[len(times) // 2]
