"""What every rank of ``costmodel run`` does: a slice to be checked, and the whole, timed and counted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from validate.allocations import allocating, give_back_memory
from validate.communication import Traffic
from validate.job import Job
from validate.launch import Rank
from validate.layer import DistributedLayer
from validate.live_memory import Sink

#: Per token, of the root mean square over all tokens: how far a right result may be off, whose rounding errors have
#: gone through some ten operations. bf16 has 8 bits, fp16 11, fp32 24.
TOLERANCE = {"bf16": 0.1, "fp16": 2e-2, "fp32": 1e-3, "fp64": 1e-9}


class WrongResultError(RuntimeError):
    """Ranks computed something else than one process does."""


@dataclass(frozen=True)
class Values:
    """What a layer gives: its output and, trained, the gradients of its input, of its weights (summed over copies), and
    of a second sequence where it reads one.

    On a rank, its parts of them.
    """

    out: Tensor
    gradient: Tensor | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    second: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Step:
    """What one step did on one rank.

    Attributes:
        seconds: by the wall clock, from when all ranks are ready.
        update: seconds of them in which the weights' gradients were summed and the weights updated.
        sent: by axis, without the weights' gradients; ``exchanged``: bytes and messages of these, along all axes.
        finite: whether all outputs were.
    """

    seconds: float
    update: float
    sent: Mapping[str, Traffic]
    exchanged: Traffic
    finite: bool


class Adam:
    """The optimizer of mixed precision: float32 copies of the weights, and two moments of each.

    Its rate is zero, so that every repetition computes the same.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.weights = [w for w in weights if w.requires_grad]
        self.copies = [w.detach().float() for w in self.weights]
        self.rule = torch.optim.Adam(self.copies, lr=0.0)

    @torch.no_grad()
    def step(self) -> None:
        for copy, w in zip(self.copies, self.weights, strict=True):
            copy.grad = None if w.grad is None else w.grad.float()
        self.rule.step()
        for copy, w in zip(self.copies, self.weights, strict=True):
            w.copy_(copy)


class Prepared:
    """A job's layer on one rank, with its tensors."""

    def __init__(self, rank: Rank, job: Job, dtype: str) -> None:
        self.job, self.layer = job, job.on(rank)
        self.layer.load(job.weights(self.layer.whole_shapes, dtype))
        self._inputs = [job.tokens(self.layer, 0, dtype), *job.memory(self.layer, dtype)]
        self.given: list[Tensor] = []
        self.seed = job.tokens(self.layer, 1, dtype) if job.phase == "train" else None
        self.cache = job.cache(self.layer, dtype) if job.phase == "decode" or job.cached else []
        self.adam = Adam(list(self.layer.weights.values())) if job.phase == "train" else None

    def renew(self) -> None:
        """Inputs of their own for the next pass, without gradients; the pass frees them once it is done with them."""
        for w in self.layer.weights.values():
            w.grad = None
        self.given = [x.clone().requires_grad_(self.seed is not None) for x in self._inputs]

    def forward(self) -> Tensor:
        x, *second = self.given
        if self.job.phase == "decode":
            return self.layer.decode(x, self.cache, self.job.length, spend=True)
        if self.job.cached:
            return self.layer.extend(x, self.cache, self.job.cached, spend=True)
        return self.layer(x, *second, spend=True)

    def step(self) -> Tensor:
        """The pass."""
        with torch.set_grad_enabled(self.seed is not None):
            out = self.forward()
        if self.seed is not None:
            out.backward(self.seed)
        return out.detach()

    def passed(self) -> None:
        """The pass as between the layers of a model: nothing but the graph holds the output of a trained one."""
        with torch.set_grad_enabled(self.seed is not None):
            out = self.forward()
            end = None if self.seed is None else Sink.apply(out, self.seed.clone)
        del out
        if end is not None:
            end.backward(torch.zeros_like(end))

    def values(self) -> Values:
        """The pass, and the sum of gradients."""
        self.renew()
        out = self.step()
        if self.seed is None:
            return Values(out.cpu())
        self.layer.sum_gradients()
        found = {name: w.grad.cpu() for name, w in self.layer.weights.items() if w.grad is not None}
        gradient, *second = [None if x.grad is None else x.grad.cpu() for x in self.given]
        return Values(out.cpu(), gradient, found, [g for g in second if g is not None])


def values(rank: Rank, job: Job, dtype: str) -> Values:
    """A rank's values of a job, its numbers drawn in a dtype."""
    return Prepared(rank, job, dtype).values()


_held: list[Prepared] = []


def _prepared(rank: Rank, job: Job) -> Prepared:
    """The job's layer and tensors, made once for all its repetitions."""
    if not _held or _held[0].job != job:
        _held[:] = [Prepared(rank, job, job.dtype)]
    return _held[0]


def step(rank: Rank, job: Job) -> Step:
    """The job once, timed."""
    return _timed(_prepared(rank, job))


def _timed(prepared: Prepared) -> Step:
    layer = prepared.layer
    prepared.renew()
    before, start = dict(layer.ops.transport.sent), _together(layer)
    out = prepared.step()
    worked, between = _now(layer), dict(layer.ops.transport.sent)
    if prepared.adam is not None:
        layer.sum_gradients()
        prepared.adam.step()
    end, after = _now(layer), layer.ops.transport.sent
    sent = {axis: traffic - before.get(axis, Traffic()) for axis, traffic in between.items()}
    summed = [traffic - between.get(axis, Traffic()) for axis, traffic in after.items()]
    exchanged = Traffic(sum(t.bytes for t in summed), sum(t.messages for t in summed))
    return Step(end - start, end - worked, sent, exchanged, bool(out.isfinite().all()))


def peak(rank: Rank, job: Job) -> int:
    """Bytes that the allocator handed out at most while the job ran, its input among them."""
    prepared = _prepared(rank, job)
    give_back_memory()
    with allocating(prepared.layer.ops.device) as found:
        prepared.renew()
        prepared.passed()
    return found.peak


def step_and_peak(rank: Rank, job: Job) -> tuple[Step, int]:
    """As ``step`` and ``peak`` of one and the same run, for a job that takes too long for several.

    The output of a trained pass is held until its end, and its optimizer's memory is counted.
    """
    prepared = _prepared(rank, job)
    with allocating(prepared.layer.ops.device) as found:
        done = _timed(prepared)
    return done, found.peak


def _together(layer: DistributedLayer) -> float:
    """The time at which all ranks are here."""
    _now(layer)
    if layer.mesh.ranks > 1:
        dist.barrier()
    return _now(layer)


def _now(layer: DistributedLayer) -> float:
    if layer.ops.device.type == "cuda":
        torch.cuda.synchronize(layer.ops.device)
    return time.perf_counter()


# The check ------------------------------------------------------------------------------------------------------------


def worst_error(job: Job, found: list[Values]) -> float:
    """How far the ranks' values are off at most from those of one process in float64, relative to their usual size.

    Of outputs and gradients of the input the worst token but for padding, of each weight the whole gradient. Not a
    number where a value is none.
    """
    alone, first = job.alone(), Rank(0, 1, 60.0)
    right = values(first, alone, job.dtype)
    errors = []
    for number, own in enumerate(found):
        layer = job.on(Rank(number, job.ranks, 60.0))
        tokens = layer.places(job.batch, job.length)[1] < job.length
        for mine, every in ((own.out, right.out), (own.gradient, right.gradient)):
            if mine is not None and every is not None:
                errors.append(_worst_token(mine[:, tokens], layer.shard(every[:, : job.length])[:, tokens]))
        errors += [_worst_token(a, layer.shard_memory(b)) for a, b in zip(own.second, right.second, strict=True)]
        errors += [_whole(own.weights[name], layer.cut(name, w)) for name, w in right.weights.items()]
    return float(torch.tensor(errors).max())


def _worst_token(own: Tensor, right: Tensor) -> float:
    worst = (own.double() - right).square().mean(-1).sqrt()
    return _relative(worst.max(), right) if worst.numel() else 0.0  # of a rank that has only padding


def _whole(own: Tensor, right: Tensor) -> float:
    return _relative((own.double() - right).square().mean().sqrt(), right)


def _relative(error: Tensor, right: Tensor) -> float:
    """An error as a part of the root mean square of what is right; itself where that is zero."""
    scale = float(right.square().mean().sqrt())
    return float(error) / (scale or 1.0)
