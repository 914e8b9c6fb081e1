"""A program as a user would write it, for ``torchrun``: layers spread over the launcher's processes, and checked."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import validate
from validate.launch import Rank, run_ranks
from validate.template import whole_layer

SIZES = {"width": 6, "heads": 4, "kv_heads": 2, "head_dim": 4}

#: A strategy of each layout.
LAYOUTS = {"contiguous": "ring", "zigzag": "zigzag", "striped": "striped"}


def main(results: str) -> None:
    """Write, on each rank, how far output and gradients are off in each layout, and every rank's index."""
    ranks = int(sys.argv[2])
    whole, seed = torch.randn(2, 2, 16, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = [f"{layout} {off(strategy, ranks, whole, seed)}" for layout, strategy in LAYOUTS.items()]
    everyone = run_ranks(index_and_size, ranks)
    Path(results, str(dist.get_rank())).write_text("\n".join([*errors, str(everyone)]))
    dist.destroy_process_group()


def off(strategy: str, ranks: int, whole: Tensor, seed: Tensor) -> float:
    """How far a layer is off at most from one in a single process: its output and the gradients of all it is given."""
    layer = validate.distributed("attention", strategy, {"context": ranks}, dtype=torch.float64, **SIZES)
    assert torch.equal(layer.unshard(layer.shard(whole)), whole)
    x = layer.shard(whole).clone().requires_grad_()
    y = layer(x)
    y.backward(layer.shard(seed))
    layer.sum_gradients()

    given = whole.clone().requires_grad_()
    weights = {name: w.detach().clone().requires_grad_() for name, w in layer.weights.items()}
    expected = whole_layer(layer.layer, given, weights, causal=True)
    expected.backward(seed)
    pairs = [(layer.unshard(y.detach()), expected), (layer.unshard(x.grad), given.grad)]
    pairs += [(layer.weights[name].grad, w.grad) for name, w in weights.items()]
    return max(float((found - right).abs().max()) for found, right in pairs)


def index_and_size(rank: Rank) -> tuple[int, int]:
    return rank.index, rank.size


if __name__ == "__main__":
    main(sys.argv[1])
