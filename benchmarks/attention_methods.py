"""Ways to compute exact softmax attention on CPU ranks, alike for the benchmarks: ours, one process, and peers.

Of every way: seconds by the wall clock between two barriers, the most memory that each rank's allocator handed out at
once, and the error on a few queries against float64.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from costmodel import __version__
from costmodel.carries.pairs import Pairs
from costmodel.masks import Mask
from costmodel.strategy import strategies
from validate.allocations import allocating
from validate.attention import kept
from validate.executor import Executor
from validate.launch import Rank
from validate.layout import shard
from validate.mesh import Mesh

#: Queries at either end of a rank's part that are compared with float64.
CHECKED = 8

Run = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """What is computed: q, k, v [1, heads, length, d], random."""

    length: int
    causal: bool
    train: bool = False
    heads: int = 4
    d: int = 64
    dtype: str = "float32"
    seed: int = 0

    @property
    def flops(self) -> float:
        """Useful FLOP of the products: two forward, five more backward."""
        pairs = Mask(self.causal).useful_pairs(self.length, self.length)
        return float(2 * pairs * self.heads * self.d * (7 if self.train else 2))


@dataclass(frozen=True)
class Outcome:
    """What one rank saw.

    Attributes:
        seconds: by the wall clock; ``cpu_seconds``: of the processor, which other work on the machine disturbs less.
        memory: bytes, without inputs.
        error: of a few queries, relative to the usual size of a value; ``gradient_error``: of their gradients.
    """

    seconds: float
    cpu_seconds: float
    memory: int
    error: float
    gradient_error: float | None


@dataclass(frozen=True)
class Method:
    """A way to compute it.

    Attributes:
        prepare: on a rank, gives the function of that rank's q, k and v [1, heads, n, d].
        layout: how the sequence lies on the ranks.
        sequence_first: whether it wants [1, n, heads, d].
        module: what must be installed.
        backward: whether it has one on a CPU.
    """

    name: str
    prepare: Callable[[Rank, Case], Run]
    ranks: int = 2
    layout: str = "contiguous"
    sequence_first: bool = False
    module: str | None = None
    backward: bool = True
    scores: Callable[[Case], float] = lambda case: 0.0  #: bytes of scores that a rank holds at once

    @property
    def there(self) -> bool:
        return self.module is None or find_spec(self.module) is not None


def _one_process(rank: Rank, case: Case) -> Run:
    return partial(scaled_dot_product_attention, is_causal=case.causal)


def _vanilla(rank: Rank, case: Case) -> Run:
    """Written down as in a textbook, the scores in memory."""
    keep = kept(Mask(case.causal), case.length, case.length) if case.causal else None

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT * case.d**-0.5
        return (scores if keep is None else scores.masked_fill(~keep, -torch.inf)).softmax(-1) @ v

    return attend


def _ours(strategy: str, axis: str, rank: Rank, case: Case) -> Run:
    ops = Executor(getattr(torch, case.dtype), Mesh.of({axis: 2}, rank.index), timeout_s=rank.timeout_s)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        carry = Pairs(q, k, v, Mask(case.causal), case.d**-0.5)
        return strategies.get(strategy).apply(ops, ops.transport.mesh.axes, carry)

    return attend


def _yunchang(ulysses: int, ring: int, rank: Rank, case: Case) -> Run:
    import yunchang

    yunchang.set_seq_parallel_pg(ulysses, ring, rank.index, rank.size)
    layer = yunchang.LongContextAttention(ring_impl_type="basic", attn_type=yunchang.kernels.AttnType.TORCH_MATH)
    return partial(layer, causal=case.causal)


def _ring_attention_pytorch(rank: Rank, case: Case) -> Run:
    from ring_attention_pytorch.ring_flash_attention import ring_flash_attn

    return lambda q, k, v: ring_flash_attn(q, k, v, None, case.causal, 1024, True, ring_size=rank.size)


def _squares(heads: float, side: float, case: Case) -> float:
    """Bytes of scores, their exponentials, and a third array of the size."""
    return 3 * 4 * heads * case.heads * (side * case.length) ** 2


METHODS = (
    Method("one process", _one_process, ranks=1),
    Method("ring", partial(_ours, "ring", "context")),
    Method("zigzag", partial(_ours, "zigzag", "context"), layout="zigzag"),
    Method("ulysses", partial(_ours, "ulysses", "ulysses")),
    Method(
        "yunchang ring",
        partial(_yunchang, 1, 2),
        sequence_first=True,
        module="yunchang",
        backward=False,
        scores=partial(_squares, 1, 0.5),
    ),
    Method(
        "yunchang ulysses",
        partial(_yunchang, 2, 1),
        sequence_first=True,
        module="yunchang",
        backward=False,
        scores=partial(_squares, 0.5, 1),
    ),
    Method("ring-attention-pytorch", _ring_attention_pytorch, sequence_first=True, module="ring_attention_pytorch"),
    Method("vanilla", _vanilla, ranks=1, scores=partial(_squares, 1, 1)),
)
BY_NAME = {method.name: method for method in METHODS}


def run_method(rank: Rank, name: str, case: Case) -> Outcome:
    """On each rank: a method once, timed, measured and checked."""
    method = BY_NAME[name]
    torch.set_num_threads(1)
    whole = _tensors(case)
    places = shard(torch.arange(case.length), 0, method.ranks, rank.index, method.layout)
    own = [_own(x, places, method) for x in whole]
    *qkv, seed = own
    for x in qkv:
        x.requires_grad_(case.train)
    attend = method.prepare(rank, case)
    with allocating(torch.device("cpu")) as memory, torch.set_grad_enabled(case.train):
        start, busy = _together(method.ranks), time.process_time()
        out = attend(*qkv)
        if case.train:
            out.backward(seed)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    few = torch.cat([torch.arange(CHECKED), torch.arange(len(places) - CHECKED, len(places))])
    right, right_gradient = _exact(whole, places[few], case)
    found = [_heads_first(x, method)[:, :, few] for x in (out.detach(), qkv[0].grad) if x is not None]
    gradient_error = _relative(found[1], right_gradient) if case.train else None
    return Outcome(seconds, busy, memory.peak, _relative(found[0], right), gradient_error)


def _tensors(case: Case) -> list[Tensor]:
    """q, k, v and the gradient of the output, whole."""
    random = torch.Generator().manual_seed(case.seed)
    dtype = getattr(torch, case.dtype)
    shape = 1, case.heads, case.length, case.d
    return [torch.randn(shape, generator=random).to(dtype) for _ in range(4 if case.train else 3)] + (
        [] if case.train else [torch.empty(1, case.heads, case.length, 0)]
    )


def _own(x: Tensor, places: Tensor, method: Method) -> Tensor:
    part = x[:, :, places]
    return part.transpose(1, 2).contiguous() if method.sequence_first else part.contiguous()


def _heads_first(x: Tensor, method: Method) -> Tensor:
    return x.transpose(1, 2) if method.sequence_first else x


def _exact(whole: list[Tensor], places: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """Output and gradient of the queries at some places, in float64, a head at a time."""
    outs, gradients = [], []
    hidden = torch.arange(case.length) > places[:, None] if case.causal else torch.tensor(False)
    for head in range(case.heads):
        q, k, v, seed = (x[:, head : head + 1].double() for x in whole)
        own = q[:, :, places].requires_grad_(case.train)
        out = (own @ k.mT * case.d**-0.5).masked_fill(hidden, -torch.inf).softmax(-1) @ v
        if case.train:
            gradients.append(torch.autograd.grad(out, own, seed[:, :, places])[0])
        outs.append(out.detach())
    return torch.cat(outs, 1), torch.cat(gradients, 1) if gradients else torch.empty(0)


def _relative(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).abs().max() / right.square().mean().sqrt())


def _together(ranks: int) -> float:
    if ranks > 1:
        dist.barrier()
    return time.perf_counter()


def environment() -> dict[str, Any]:
    """Where and when this is run, in general words."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": f"{os.cpu_count()}-core {platform.machine()} CPU, {pages / 2**30:.0f} GiB",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "costmodel": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def free_bytes() -> int:
    """Memory that is free now."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
