"""Peak memory and longest sequences of published training steps, against what is predicted.

    python benchmarks/published_memory.py

Steps of whole models with full recomputation and ZeRO-3 that hold the logits of all tokens (``--whole-logits``). What
is measured also holds what an allocator reserves, and buckets of the library that shards the weights. Longest sequences
were looked for among powers of two, and so are those predicted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from costmodel.data_parallel import Sharing
from costmodel.estimate import Chosen, estimate
from costmodel.hardware.cluster import Cluster
from costmodel.hardware.profile import load_profile
from costmodel.huggingface import read_config
from costmodel.step import MEMORY
from costmodel.subject import from_model
from costmodel.units import format_bytes
from costmodel.workload import Workload

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

TITAN = (
    "https://github.com/pytorch/torchtitan/blob/b5bcd76c66d0acb1a08b176d9639425bc55e0b2a/benchmarks/"
    "llama3_h100_202412_torchtitan.md"
)
ULYSSES = "https://huggingface.co/blog/ulysses-sp"


@dataclass(frozen=True)
class Measured:
    """One step on H100, one sequence for each group of ranks that holds one.

    Attributes:
        context, ulysses: ranks along these axes; the rest of the devices holds replicas.
        bytes: the most of one device; ``None`` where it ran out of its 80 GB.
        on_host: whether the optimizer's state is in the host's memory.
    """

    url: str
    model: str
    devices: int
    context: int
    ulysses: int
    length: int
    bytes: float | None
    on_host: bool

    @property
    def strategy(self) -> str:
        """The strategy that ran."""
        return "zigzag" if self.context > 1 else "ulysses" if self.ulysses > 1 else "whole"


STEPS = (
    *(
        Measured(TITAN, "llama-3-8b", 8, context, 1, 32768 * context, gib * 2**30, False)
        for context, gib in ((1, 83.9), (2, 84.2), (4, 84.0), (8, 84.5))
    ),
    *(
        Measured(ULYSSES, "qwen3-4b", 4, 1, 4, length, gb and gb * 1e9, True)
        for length, gb in ((8192, 23.4), (32768, 35.0), (65536, 50.5), (98304, 66.0), (131072, None))
    ),
)


@dataclass(frozen=True)
class Longest:
    """The longest sequence that fitted, of one step of one sequence on A100.

    Attributes:
        ranks: along the axes of the mesh.
        tokens: a power of two.
    """

    url: str
    model: str
    devices: int
    strategy: str
    ranks: Mapping[str, int]
    recompute: bool
    sharing: Sharing
    tokens: int


FPDT = "https://github.com/deepspeedai/DeepSpeed/blob/master/blogs/ulysses-offload/media/image5.png"
RING = "https://arxiv.org/abs/2310.01889"

LONGEST = (
    Longest(FPDT, "llama-3-8b", 8, "whole", {"tensor": 8}, False, Sharing.NOTHING, 2**15),
    Longest(FPDT, "llama-3-8b", 8, "whole", {"tensor": 8}, True, Sharing.NOTHING, 2**17),
    Longest(FPDT, "llama-3-8b", 8, "ulysses", {"ulysses": 8}, False, Sharing.OPTIMIZER, 2**16),
    Longest(FPDT, "llama-3-8b", 8, "ulysses", {"ulysses": 8}, False, Sharing.EVERYTHING, 2**16),
    Longest(RING, "llama-2-7b", 8, "ring", {"context": 8}, True, Sharing.EVERYTHING, 2**18),
    Longest(RING, "llama-2-7b", 32, "ring", {"context": 32}, True, Sharing.EVERYTHING, 2**22),
)


def longest(step: Longest) -> int:
    """Tokens that fit, the nearest power of two below."""
    subject = from_model(read_config(EXAMPLES / f"{step.model}.json"))
    chosen = Chosen((step.strategy,), step.ranks, recompute=step.recompute, sharing=step.sharing)
    workload = Workload(step.tokens, 1, "train", whole_logits=True)
    ranking = estimate(subject, workload, Cluster(load_profile("a100"), step.devices), chosen)
    return int(2 ** (ranking.longest(0).bit_length() - 1))


def predicted(step: Measured, whole_logits: bool = True) -> float:
    """Bytes of one device, with what its context and communication take."""
    profile = load_profile("h100")
    data = step.devices // step.context // step.ulysses
    ranks = {"context": step.context, "ulysses": step.ulysses, "data": data}
    workload = Workload(step.length, data, "train", whole_logits=whole_logits)
    chosen = Chosen((step.strategy,), ranks, recompute=True, sharing=Sharing.EVERYTHING)
    subject = from_model(read_config(EXAMPLES / f"{step.model}.json"))
    ranking = estimate(subject, workload, Cluster(profile, step.devices), chosen)
    held = sum(float(ranking.column(kind)[0]) for kind in MEMORY if not (step.on_host and kind == "optimizer"))
    return held + profile.device.reserved_bytes.value


def main() -> None:
    ratios = []
    for step in STEPS:
        whole, chunks = predicted(step), predicted(step, whole_logits=False)
        measured = "out of 80 GB"
        if step.bytes is not None:
            ratios.append(whole / step.bytes)
            measured = f"{format_bytes(step.bytes)}, predicted/measured {ratios[-1]:.2f}"
        sys.stdout.write(
            f"{step.model}, {step.strategy}, {step.devices} H100, {step.length:,} tokens: predicted "
            f"{format_bytes(whole)} ({format_bytes(chunks)} with logits in chunks), measured {measured}\n"
        )
    sys.stdout.write(f"median of predicted over measured: {np.median(ratios):.2f}\n")
    for held in LONGEST:
        again = "with" if held.recompute else "without"
        sys.stdout.write(
            f"{held.model}, {held.strategy}, {held.devices} A100, {again} recomputation, {held.sharing.value}: longest "
            f"predicted {longest(held):,}, measured {held.tokens:,}\n"
        )


if __name__ == "__main__":
    main()
