"""A program as a user would write it, for ``torchrun``: a layer spread over the launcher's processes, and checked."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import validate
from validate.launch import Rank, run_ranks
from validate.template import whole_layer


def main(results: str) -> None:
    """Write, on each rank, its index and how far output and gradient of its tokens are off."""
    ranks = int(sys.argv[2])
    layer = validate.distributed(
        "attention", "zigzag", {"context": ranks}, dtype=torch.float64, width=6, heads=4, kv_heads=2, head_dim=4
    )
    whole, seed = torch.randn(2, 2, 16, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = layer.shard(whole).requires_grad_()
    layer(x).backward(layer.shard(seed))
    out = layer.unshard(layer(x).detach())

    whole.requires_grad_()
    expected = whole_layer(layer.layer, whole, {name: w.detach() for name, w in layer.weights.items()}, causal=True)
    expected.backward(seed)
    errors = (out - expected).abs().max(), (x.grad - layer.shard(whole.grad)).abs().max()
    everyone = run_ranks(index_and_size, ranks)
    Path(results, str(dist.get_rank())).write_text(f"{max(map(float, errors))} {everyone}")
    dist.destroy_process_group()


def index_and_size(rank: Rank) -> tuple[int, int]:
    return rank.index, rank.size


if __name__ == "__main__":
    main(sys.argv[1])
