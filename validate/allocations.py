"""Memory that the allocator handed out during a run: on a CPU every allocation is seen, to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain

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
