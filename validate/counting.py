"""What a real run did: FLOPs as torch counts them, and bytes that autograd keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import flop_counter as torch_counter

from costmodel.ops.contraction import Contract
from costmodel.ops.fused_attention import Attention, AttentionBackward
from costmodel.ops.primitive import Primitive
from validate.attention import kept
from validate.executor import Executor

_aten: Any = torch.ops.aten
_torch_counter: Any = torch_counter


def _flash(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> Any:
    return _torch_counter.sdpa_flop_count(q, k, v)


def _flash_backward(g: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> Any:
    return _torch_counter.sdpa_backward_flop_count(g, q, k, v)


def flop_counter() -> torch_counter.FlopCounterMode:
    """Torch's counter of products, with the flash kernels for the CPU, which it leaves out (torch 2.13).

    It knows no masks: it counts a causal kernel as a full one.
    """
    mapping = {
        _aten._scaled_dot_product_flash_attention_for_cpu: _flash,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
    }
    return torch_counter.FlopCounterMode(display=False, custom_mapping=mapping)


class Watched(Executor):
    """An executor that counts the useful FLOPs of products as it runs, over masks that it writes out.

    Attributes:
        useful: so far, forward and backward.
    """

    useful = 0

    def apply(self, primitive: Primitive, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = super().apply(primitive, *inputs)
        shapes = [tuple(x.shape) for x in inputs]
        if isinstance(primitive, Attention | AttentionBackward):
            (b, h, n_q, d), (_, _, n_k, _), (_, _, _, e) = shapes[:3]
            pairs = int(kept(primitive.mask, n_q, n_k).sum())
            # forward q k^T and p v; backward q k^T, g v^T, ds k, ds^T q and p^T g
            self.useful += b * h * pairs * (2 * (d + e) if isinstance(primitive, Attention) else 6 * d + 4 * e)
        elif isinstance(primitive, Contract):
            left, right, _ = primitive.terms()
            size = dict(zip(left + right, (*shapes[0], *shapes[1]), strict=True))
            if primitive.mask is not None:
                n_q, n_k = (size.pop(index) for index in primitive.pairs)
                size["pairs"] = int(kept(primitive.mask, n_q, n_k).sum())
            self.useful += 2 * math.prod(size.values())
        return outputs


class Kept:
    """The memory that autograd keeps for the backward pass, each piece once."""

    def __init__(self) -> None:
        self.pieces: dict[int, int] = {}

    def note(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        self.pieces[storage.data_ptr()] = storage.nbytes()
        return x

    def bytes(self, without: Sequence[Tensor] = ()) -> int:
        """Bytes, leaving out what these tensors (parameters) hold."""
        left_out = {x.untyped_storage().data_ptr() for x in without}
        return sum(size for place, size in self.pieces.items() if place not in left_out)


@contextmanager
def keeping() -> Iterator[Kept]:
    """Notes what autograd keeps of the operations inside.

    A piece of memory is known by its address, which stays its own as long as it is kept.
    """
    found = Kept()
    with torch.autograd.graph.saved_tensors_hooks(found.note, lambda x: x):
        yield found
