"""The allocator: what it hands out during a run (on a CPU every allocation is seen, to the byte), and what it keeps."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import torch
from torch._C import _autograd
from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig


@dataclass
class Allocated:
    """What was allocated in a region of the program.

    Attributes:
        peak: the most bytes held at once of those allocated in the region, once it has ended.
    """

    peak: int = 0


@contextmanager
def allocating(device: torch.device) -> Iterator[Allocated]:
    """Follows the allocator: by its own statistics on a GPU; on a CPU by the events that it reports to the profiler.

    On a CPU, allocations inside kernels are among them, and those of libraries (MKL, gloo) are not. On a GPU, sizes
    are rounded up to 512 bytes.
    """
    found = Allocated()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.peak = torch.cuda.max_memory_allocated(device) - before
        return
    config = ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig(), "")
    _autograd._enable_profiler_legacy(config)
    try:
        yield found
    finally:
        events = _autograd._disable_profiler_legacy()
    sizes = [event.cpu_memory_usage() for event in chain.from_iterable(events) if event.kind() == "memory_alloc"]
    found.peak = max(accumulate(sizes), default=0)


#: mallopt(3): the number of blocks that the system gives by themselves, and when free memory is given back to it.
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1


def keep_memory() -> None:
    """Have the C library use freed memory again, however large, as the caching allocator of CUDA does.

    Otherwise results of some tens of MB are in new pages each time, and the system's work on these is most of the
    time. Does nothing where the C library is not glibc.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """Have the C library give free memory back to the system, wherever it lies; ``keep_memory`` goes on.

    What passes left in pieces would else come on top of what the next one needs.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., Any] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
