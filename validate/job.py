"""A layer to run for measurement: small enough to send to every rank, which makes its part of the tensors itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from costmodel.arrangement import Way
from costmodel.dims import Shape
from costmodel.strategy import strategies
from costmodel.subject import Layer, from_mixer
from costmodel.workload import GradientPrecision, Phase, Workload
from validate.executor import Executor
from validate.expected import Expected
from validate.launch import Rank
from validate.layer import DistributedLayer
from validate.mesh import Mesh
from validate.task import Task

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}

#: Tokens that are drawn at a time, so that a rank draws its own and few others.
DRAWN = 1024


@dataclass(frozen=True)
class Job:
    """One layer, run in one way; its tensors are random and follow from ``seed`` and the place of a token.

    Attributes:
        mixer, strategy: names, or ``file.py:NAME``.
        sizes: hyperparameters of the mixer by name; ``width`` of the model.
        mesh: ranks along each axis.
        length: tokens of the sequence; when decoding, of the cache with the new token.
        batch: sequences, over all ranks.
        context_inside: of a grid, whether context ranks follow each other, within Ulysses ranks.
        documents: lengths of those that each sequence is packed with.
        cached: tokens that a prefill follows on.
        gradient: precision of gradients that several ranks add to, on their way between them.
    """

    mixer: str
    strategy: str
    kernel: str
    mesh: Mapping[str, int]
    length: int
    batch: int = 1
    phase: Phase = "forward"
    causal: bool = True
    dtype: str = "fp32"
    sizes: Mapping[str, int] = field(default_factory=dict)
    width: int | None = None
    seed: int = 0
    context_inside: bool = False
    documents: tuple[int, ...] = ()
    cached: int = 0
    gradient: GradientPrecision = "fp32"

    @property
    def ranks(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def layer(self) -> Layer:
        return from_mixer(self.mixer, self.width, **self.sizes).layers[0]

    @property
    def way(self) -> Way:
        return Way(strategies.get(self.strategy), self.kernel, self.mesh.get("tensor", 1) > 1)

    @property
    def workload(self) -> Workload:
        return Workload(
            self.length,
            self.batch,
            self.phase,
            self.causal,
            cached=self.cached,
            documents=self.documents,
            gradient=self.gradient,
        )

    @property
    def expected(self) -> Expected:
        """The formulas of this run."""
        dtype, gradient = DTYPES[self.dtype], self.travelling
        return Expected(self.layer, self.way, self.workload, self.mesh, dtype, self.context_inside, gradient)

    @property
    def travelling(self) -> torch.dtype | None:
        """Of gradients between ranks; ``None`` for that of accumulation."""
        return DTYPES[self.dtype] if self.gradient == "model" else None

    def of(self, length: int) -> Job:
        """The same for the first tokens only, and for as large a part of cached ones, which the ranks can share."""
        ranks = self.mesh.get("context", 1) * self.mesh.get("ulysses", 1)
        cached = self.cached and max(1, self.cached * length // self.length // ranks) * ranks
        ends = [min(end, length) for end in accumulate(self.documents)]
        lengths = (end - begin for begin, end in pairwise([0, *ends]))
        return replace(self, length=length, documents=tuple(n for n in lengths if n), cached=cached)

    def alone(self) -> Job:
        """The same in one process, in float64."""
        return replace(self, strategy="whole", mesh={}, dtype="fp64", context_inside=False, gradient="fp32")

    def on(self, rank: Rank) -> DistributedLayer:
        """The layer on a rank, on its GPU where the ranks talk over NCCL."""
        cuda = dist.is_initialized() and dist.get_backend() == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else "cpu"
        mesh = Mesh.of(self.mesh, rank.index, self.context_inside)
        dtype, gradient = DTYPES[self.dtype], self.travelling
        ops = Executor(dtype, mesh, gradient=gradient, timeout_s=rank.timeout_s, device=device)
        return DistributedLayer(self.layer, Task(self.way, self.causal, self.phase, self.length, self.documents), ops)

    # Tensors ------------------------------------------------------------------------------------------------------

    def weights(self, shapes: Mapping[str, Shape], dtype: str) -> dict[str, Tensor]:
        """Random weights, rounded to a dtype, that keep numbers near 1."""
        random = torch.Generator().manual_seed(self.seed)
        drawn = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
        return {name: (w * (w.shape[0] ** -0.5 if w.dim() > 1 else 1)).to(DTYPES[dtype]) for name, w in drawn.items()}

    def tokens(self, made: DistributedLayer, what: int, dtype: str) -> Tensor:
        """A rank's part of random numbers for every token, and zeros for padding, [B, n, D], rounded to a dtype.

        Args:
            what: which numbers, of several for every token.
        """
        sequences, places = made.places(self.batch, self.length)
        found, width = [], self.layer.sizes["D"]
        blocks, counts = torch.unique_consecutive(places // DRAWN, return_counts=True)
        for block, own in zip(blocks.tolist(), torch.split(places, counts.tolist()), strict=True):
            random = torch.Generator().manual_seed(hash((self.seed, what, block)))
            drawn = torch.randn(DRAWN, self.batch, width, generator=random)
            drawn[max(0, self.length - block * DRAWN) :] = 0  # of padding
            found.append(drawn[own - block * DRAWN].to(DTYPES[dtype]))
        return torch.cat(found)[:, sequences].transpose(0, 1).contiguous().to(made.ops.device, made.ops.dtypes["model"])

    def memory(self, made: DistributedLayer, dtype: str) -> list[Tensor]:
        """A rank's part of a second sequence of random numbers, if the mixer reads one."""
        second = self.layer.mixer.memory(self.layer.sizes)
        if second is None or self.phase == "decode":
            return []
        random = torch.Generator().manual_seed(self.seed + 2)
        whole = torch.randn(self.batch, second.tokens, second.width, generator=random).to(DTYPES[dtype])
        return [made.shard_memory(whole).to(made.ops.device, made.ops.dtypes["model"], copy=True)]

    def cache(self, made: DistributedLayer, dtype: str) -> list[Tensor]:
        """A rank's part of what earlier tokens left: random numbers for every token, and empty states.

        Before a prefill, with room for its new tokens.
        """
        random = torch.Generator().manual_seed(self.seed + 1)
        kept = made.layer.mixer.cache(self.layer.sizes, self.layer.kept(self.cached or self.length))
        shapes = [(self.batch, *k.shape) for k in kept]
        whole = [
            torch.randn(shape, generator=random).to(DTYPES[dtype]) if k.tokens else torch.full(shape, k.start)
            for shape, k in zip(shapes, kept, strict=True)
        ]
        parts = made.shard_cache(whole)
        if self.cached:
            room = made.padded(self.length) // made.mesh.ranks_along(("context", "ulysses"))
            parts = tuple(pad(part, (0, 0) * (part.dim() - 3) + (0, room)) for part in parts)
        precise = [made.ops.dtypes[k.precision] for k in kept]
        return [part.to(made.ops.device, to, copy=True) for part, to in zip(parts, precise, strict=True)]
