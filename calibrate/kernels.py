"""Cases on real tensors: the very kernels that the executor runs, with operands that no cache holds.

Operands are views of one pool of numbers, so that none is made or filled for a shape, and a kernel is given one set of
them after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from calibrate.case import Case, Operand, Sizes
from calibrate.cases import CASES
from calibrate.host import HostCopy
from calibrate.method import Clock, CudaClock, ThreadClock, WallClock, Work, rotating
from calibrate.shapes import Shape
from validate.executor import Executor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: The pool is so many times as large as the last-level cache.
POOL = 2.5

#: Sets of operands at most: of small ones, those of a kernel just before are in a cache in use, too.
SETS = 64

#: Elements between the starts of two operands: those of a cache line, and an odd number of them.
GAP = 16 * 5


def clock_for(device: str) -> Clock:
    """How work on a device is timed; on one thread of a CPU by the time that the thread itself had."""
    if device == "cuda":
        return CudaClock()
    return ThreadClock() if torch.get_num_threads() == 1 else WallClock()


@dataclass
class Bench:
    """Makes work for a timer.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        cache_bytes: of the last-level cache.
    """

    device: str
    cache_bytes: int
    _pools: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def work(self, shape: Shape) -> Work:
        """Calls of the kernel at this shape, each with other operands than the call before."""
        case, dtype = CASES[shape.kernel], DTYPES[shape.dtype]
        if shape.kernel == "adam":
            return _adam(torch.rand(case.operands(shape.sizes)[0].shape, dtype=dtype, device=self.device))
        ops = Executor(dtype, device=self.device)
        return rotating(_call(case, ops, shape.sizes), self._sets(case.operands(shape.sizes), ops))

    def reference(self) -> Work:
        """What is timed again and again to see whether the device is as fast as before."""
        return self.work(Shape("gemm", "fp32", {"M": 256, "K": 256, "N": 256}))

    def copy(self, copy: HostCopy) -> Work:
        """A copy between this device and the host, in memory that both have touched."""
        host = [torch.ones(copy.bytes, dtype=torch.uint8, pin_memory=copy.pinned) for _ in range(2)]
        device = [torch.ones(copy.bytes, dtype=torch.uint8, device=self.device) for _ in range(2)]
        if copy.way == "to the device":
            return lambda: device[0].copy_(host[0], non_blocking=True)
        if copy.way == "from the device":
            return lambda: host[1].copy_(device[1], non_blocking=True)
        return _both_ways((device[0], host[0]), (host[1], device[1]))

    def _sets(self, operands: tuple[Operand, ...], ops: Executor) -> list[tuple[Tensor, ...]]:
        dtypes = [torch.int64 if x.precision == "index" else ops.dtypes[x.precision] for x in operands]
        sizes = [math.prod(operand.shape) + GAP for operand in operands]
        elements = sum(sizes)
        whole = sum(size * dtype.itemsize for size, dtype in zip(sizes, dtypes, strict=True))
        count = min(max(2, math.ceil(POOL * self.cache_bytes / whole)), SETS)
        found = []
        for number in range(count):
            at, made = number * elements, []
            for operand, size, dtype in zip(operands, sizes, dtypes, strict=True):
                made.append(self._taken(operand, dtype, at))
                at += size
            found.append(tuple(made))
        return found

    def _taken(self, operand: Operand, dtype: torch.dtype, start: int) -> Tensor:
        """A view of the pool, which begins anew where it is too short."""
        size = math.prod(operand.shape)
        if operand.precision == "index":
            return torch.randint(operand.below, operand.shape, device=self.device)
        pool = self._pools.get(dtype)
        needed = max(math.ceil(POOL * self.cache_bytes / dtype.itemsize), 2 * size + GAP)
        if pool is None or len(pool) < needed:
            pool = self._pools[dtype] = (torch.rand(needed, device=self.device) + 0.5).to(dtype)
        at = start % (len(pool) - size + 1) // 16 * 16
        return pool[at : at + size].view(operand.shape)


def _call(case: Case, ops: Executor, sizes: Sizes) -> Any:
    @torch.no_grad()  # type: ignore[untyped-decorator]
    def call(*operands: Tensor) -> object:
        return case.run(ops, sizes, *operands)

    return call


def _both_ways(to: tuple[Tensor, Tensor], back: tuple[Tensor, Tensor]) -> Work:
    """A copy into the first of each pair from its second, both at the same time."""
    other = torch.cuda.Stream()

    def both() -> None:
        other.wait_stream(torch.cuda.current_stream())
        to[0].copy_(to[1], non_blocking=True)
        with torch.cuda.stream(other):
            back[0].copy_(back[1], non_blocking=True)
        torch.cuda.current_stream().wait_stream(other)

    return both


def _adam(parameters: Tensor) -> Work:
    """The fused step of torch's optimizer."""
    parameters.requires_grad_().grad = torch.rand_like(parameters)
    return torch.optim.AdamW([parameters], fused=True).step
