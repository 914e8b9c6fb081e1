"""Measure one CPU core and the loopback network, and print the numbers of ``hardware/profiles/cpu.toml``.

Run ``python benchmarks/cpu_profile.py`` on an idle machine with at least two cores. It takes some minutes and
prints one TOML line per quantity: the median of the runs as the value, the 10 % and 90 % points as the range.
Kernels run on one thread and are timed by the processor time they took, so that other work on the machine
disturbs less; collectives run between two gloo processes over loopback TCP and are timed by the wall clock.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F

from costmodel.masks import Mask
from validate import attention

RUNS = 15
SEED = 0
RANKS = 2
MESSAGE = 32 * 2**20  # bytes, far above what the socket buffers hold


def seconds(
    work: Callable[[], object],
    calls: int = 1,
    runs: int = RUNS,
    clock: Callable[[], float] = time.process_time,
) -> list[float]:
    """Time per call in s of each run, after one run that is thrown away."""
    times = []
    for _ in range(runs + 1):
        start = clock()
        for _ in range(calls):
            work()
        times.append((clock() - start) / calls)
    return times[1:]


def report(name: str, times: list[float], amount: float | None = None) -> None:
    """Print median, 10 % and 90 % points: ``amount`` per second, or the seconds themselves."""
    figures = sorted(times if amount is None else [amount / t for t in times])
    tenth = len(figures) // 10
    low, high = figures[tenth], figures[-1 - tenth]
    sys.stdout.write(f"{name} = {{ value = {statistics.median(figures):.4g}, low = {low:.4g}, high = {high:.4g} }}\n")
    sys.stdout.flush()


def matrix_products() -> None:
    n = 2048
    for dtype in (torch.float32, torch.float64):
        a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
        report(f"gemm_{dtype}".replace("torch.", ""), seconds(lambda a=a, b=b: a @ b), 2 * n**3)
    matrix, vector = torch.randn(8192, 8192), torch.randn(8192)
    report("gemm_memory_bytes_per_s", seconds(lambda: matrix @ vector), 4 * matrix.numel())
    n = 1024  # bf16 has no instruction before AVX-512: these are slow, and depend on the layout
    a, b = torch.randn(n, n).bfloat16(), torch.randn(n, n).bfloat16()
    report("gemm_bfloat16_linear", seconds(lambda: F.linear(a, b), runs=7), 2 * n**3)
    report("gemm_bfloat16", seconds(lambda: a @ b, runs=3), 2 * n**3)


def fused_attention() -> None:
    """Forward, and backward alone, as FLOP/s: 4 L^2 d per head forward, 2.5 times that backward."""
    heads, length, d = 4, 4096, 64
    q, k, v = (torch.randn(1, heads, length, d, requires_grad=True) for _ in range(3))
    flops = 4 * heads * length**2 * d
    with torch.no_grad():
        forward = seconds(lambda: F.scaled_dot_product_attention(q, k, v))
        causal = seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    report("attention", forward, flops)
    report("attention_causal_half_flops", causal, flops / 2)
    narrow = q.bfloat16(), k.bfloat16(), v.bfloat16()
    with torch.no_grad():
        out, lse = attention.forward(narrow, Mask(), d**-0.5, flash=True)
        known = out, lse, out
        report("attention_bfloat16", seconds(lambda: attention.forward(narrow, Mask(), d**-0.5, flash=True)), flops)
        backward = seconds(lambda: attention.backward(narrow, known, Mask(), d**-0.5, flash=True), runs=9)
        report("attention_backward_bfloat16", backward, 2.5 * flops)
    ones = torch.ones(1, heads, length, d)

    def step() -> None:
        F.scaled_dot_product_attention(q, k, v).backward(ones)

    both = seconds(step, runs=9)
    report("attention_forward_backward", both, 3.5 * flops)
    report("attention_backward", [t - statistics.median(forward) for t in both], 2.5 * flops)


def streams() -> None:
    """Bytes read and written per second. Arrays exceed the cache, and allocating one needs no new pages."""
    n = 6 * 2**20
    x, y, out = torch.randn(n), torch.randn(n), torch.empty(n)
    report("copy_bytes_per_s", seconds(lambda: out.copy_(x), calls=4), 8 * n)
    report("add_bytes_per_s", seconds(lambda: torch.add(x, y, out=out), calls=4), 12 * n)
    report("gelu_bytes_per_s", seconds(lambda: F.gelu(x), calls=4), 8 * n)
    rows = x.view(-1, 4096)
    report("softmax_bytes_per_s", seconds(lambda: torch.softmax(rows, -1), calls=4), 8 * n)
    report("layer_norm_bytes_per_s", seconds(lambda: F.layer_norm(rows, (4096,)), calls=4), 8 * n)
    narrow = x.view(-1, 128)
    index = torch.randperm(narrow.shape[0])
    report("gather_bytes_per_s", seconds(lambda: torch.index_select(narrow, 0, index), calls=4), 8 * n)


def in_cache() -> None:
    """Time of a call that does almost nothing, and operations per second on what stays in the cache."""
    tiny = torch.randn(1)
    report("launch_s", seconds(lambda: torch.add(tiny, tiny), calls=20000))
    n = 32768
    x, out = torch.randn(n), torch.empty(n)
    report("exp_op_per_s", seconds(lambda: torch.exp(x, out=out), calls=1000), n)
    report("mul_op_per_s", seconds(lambda: torch.mul(x, x, out=out), calls=5000), n)
    report("gelu_op_per_s", seconds(lambda: F.gelu(x), calls=1000), n)


def network(rank: int, store: str) -> None:
    """Collectives between two processes; rank 0 prints."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=120)
    )
    peer = 1 - rank
    for nbytes in (8, MESSAGE):
        full = torch.zeros(nbytes // 4)
        half = torch.zeros(nbytes // 8)
        other, out = torch.zeros_like(full), [torch.zeros_like(half) for _ in range(RANKS)]

        def shift(full: torch.Tensor = full, other: torch.Tensor = other) -> None:
            for request in [dist.isend(full, peer), dist.irecv(other, peer)]:
                request.wait()

        def one_way(full: torch.Tensor = full) -> None:
            _ = dist.send(full, peer) if rank == 0 else dist.recv(full, peer)

        # Bus bandwidth is of the bytes one of 2 ranks sends: n of an all-reduce, n / 2 of the others.
        cases = {
            "send_recv": (one_way, nbytes),
            "ring_shift": (shift, nbytes),
            "all_gather": (lambda half=half, out=out: dist.all_gather(out, half), nbytes / 2),
            "reduce_scatter": (
                lambda full=full, half=half: dist.reduce_scatter(half, list(full.chunk(RANKS))),
                nbytes / 2,
            ),
            "all_to_all": (lambda full=full, other=other: dist.all_to_all_single(other, full), nbytes / 2),
            "all_reduce": (lambda full=full: dist.all_reduce(full), nbytes),
        }
        for name, (work, sent) in cases.items():
            dist.barrier()
            times = seconds(work, 200 if nbytes == 8 else 2, clock=time.perf_counter)
            if rank == 0:
                kind = "latency_s" if nbytes == 8 else "bytes_per_s"
                report(f"{name}_{kind}", times, None if nbytes == 8 else sent)
    dist.destroy_process_group()


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for measure in (matrix_products, fused_attention, streams, in_cache):
        measure()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(network, args=(str(Path(folder) / "store"),), nprocs=RANKS)


if __name__ == "__main__":
    main()
