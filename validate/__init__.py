"""Methods of ``costmodel`` run on real tensors and real ranks, and the model compared with what they did.

The same functions that the cost model reads as formulas run here, over torch.distributed: NCCL on GPUs, gloo on CPUs.
One layer of a model, spread over the processes that ``torchrun`` started:

    import torch
    import validate

    layer = validate.distributed("attention", "zigzag", {"context": 2}, width=512, heads=8, kv_heads=2, head_dim=64)
    whole = torch.randn(1, 4096, 512, generator=torch.Generator().manual_seed(0))  # [B, L, D], the same on every rank
    x = layer.shard(whole)                # this rank's tokens, here the 1st and 4th quarter, or the 2nd and 3rd
    y = layer(x)                          # as many outputs, over the whole sequence
    y.square().sum().backward()           # a ring again, on the way back
    layer.sum_gradients()                 # weights are copies: their gradients add up
    print(layer.unshard(y.detach()).shape, layer.ops.transport.sent)

    $ torchrun --nproc-per-node 2 example.py

``layer.load`` takes weights given whole; strategies, mixers and their sizes have the names of ``costmodel list``.
Without a launcher, ``validate.launch.RankPool`` runs a function on processes of its own, and says which one failed:

    from validate.launch import RankPool

    with RankPool(4) as pool:
        results = pool.run(function, argument, timeout_s=60)   # function(Rank, argument) on each of 4 processes

What a run did is counted where it happens: bytes and messages by ``Transport.sent``, products by
``validate.counting.FlopCounter``, kept activations by ``validate.counting.keeping``. Each mixer has a template in
``validate.template``: the layer in plain float64 torch with the token-mixing matrix written out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from validate.by_name import distributed

__all__ = ["distributed"]


def __getattr__(name: str) -> Any:
    """Load torch when it is first needed."""
    if name in __all__:
        from validate.by_name import distributed

        return distributed
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
