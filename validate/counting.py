"""What a real run did: FLOPs as torch counts them, and bytes that autograd keeps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import flop_counter as torch_counter
from torch.utils._python_dispatch import TorchDispatchMode

from costmodel.ops.chosen_blocks import ChosenAttention, ChosenAttentionBackward
from costmodel.ops.contraction import Contract
from costmodel.ops.fused_attention import Attention, AttentionBackward
from costmodel.ops.primitive import Primitive, Reading
from costmodel.ops.sorted_attention import SortedAttention, SortedAttentionBackward
from costmodel.tensor import Tensor as Traced
from validate.attention import kept
from validate.executor import Executor
from validate.kernels.chosen_blocks import seen

_aten: Any = torch.ops.aten
_torch_counter: Any = torch_counter


def _flash(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> Any:
    return _torch_counter.sdpa_flop_count(q, k, v)


def _flash_backward(g: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> Any:
    return _torch_counter.sdpa_backward_flop_count(g, q, k, v)


def _convolution_backward(*args: Any, **_: Any) -> int:
    """Both gradients take the products of the convolution; torch counts the weight's once for every group."""
    gradient, x, weight, *_unused, transposed, _padding, _groups, wanted = args
    forward: int = _torch_counter.conv_flop_count(x.shape, weight.shape, gradient.shape, transposed)
    return forward * (wanted[0] + wanted[1])


def _complex_too(formula: Any) -> Any:
    """A formula of products that counts a complex multiply-add as four real ones, where torch counts one."""

    def count(*args: Any, out_val: Tensor, **kwargs: Any) -> int:
        return int(formula(*args, out_val=out_val, **kwargs)) * (4 if out_val.is_complex() else 1)

    count._get_raw = True  # type: ignore[attr-defined]
    return count


_convolution_backward._get_raw = True  # type: ignore[attr-defined]  # torch's word for: takes tensors, not shapes


@cache
def product_formulas() -> Mapping[Any, Any]:
    """Torch's formulas of products, by op, mended where they are wrong (torch 2.13).

    They leave out the flash kernels for the CPU, take complex products for real ones, and count the weight gradient
    of a convolution once for every group. They know no masks: a causal kernel counts as a full one.
    """
    products = (_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm)
    mapping = {
        _aten._scaled_dot_product_flash_attention_for_cpu: _flash,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
        _aten.convolution_backward: _convolution_backward,
    } | {product: _complex_too(_torch_counter.flop_registry[product]) for product in products}
    return torch_counter.FlopCounterMode(display=False, custom_mapping=mapping).flop_registry


@cache
def _decomposes(func: Any) -> bool:
    """Whether an op is made of others, of which torch's counter then looks at each."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


class FlopCounter(TorchDispatchMode):
    """Counts products as torch's ``FlopCounterMode`` does, which takes as long for one op as the op itself takes here.

    Attributes:
        total: FLOPs so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula = product_formulas().get(func.overloadpacket)
        if formula is None and _decomposes(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


class Watched(Executor):
    """An executor that counts as it runs.

    Attributes:
        useful: useful FLOPs of products, over masks that it writes out, forward and backward.
        classes: dense FLOPs by class, of each primitive as it is applied to tensors of these sizes.
        applying: primitives that are being applied, and counted, at the moment.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.useful, self.classes, self.applying = 0, Counter[str](), 0

    def apply(self, primitive: Primitive, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.applying += 1
        self._count_useful(primitive, inputs)  # before they may be freed
        outputs = super().apply(primitive, *inputs)
        sizes = ([Traced.new(tuple(x.shape), x.itemsize) for x in tensors] for tensors in (inputs, outputs))
        self.classes.update(primitive.flops(*sizes, Reading.DENSE))
        self.applying -= 1
        return outputs

    def _count_useful(self, primitive: Primitive, inputs: Sequence[Tensor]) -> None:
        shapes = [tuple(x.shape) for x in inputs]
        if isinstance(primitive, Attention | AttentionBackward):
            (b, h, n_q, d), (_, _, n_k, _), (_, _, _, e) = shapes[:3]
            pairs = int(kept(primitive.mask, n_q, n_k).sum())
            self.useful += b * h * pairs * _of_a_pair(primitive, d, e)
        elif isinstance(primitive, ChosenAttention | ChosenAttentionBackward):
            d, e, chosen = inputs[0].shape[3], inputs[2].shape[3], inputs[3]
            pairs = int(seen(primitive.placed, chosen)[1].sum()) * inputs[0].shape[1] // chosen.shape[1]
            self.useful += pairs * _of_a_pair(primitive, d, e)
        elif isinstance(primitive, SortedAttention | SortedAttentionBackward):
            (*outer, c, d), e = shapes[0], shapes[2][-1]
            self.useful += math.prod(outer) * c * 2 * c * _of_a_pair(primitive, d, e)
        elif isinstance(primitive, Contract):
            left, right, _ = primitive.terms()
            size = dict(zip(left + right, (*shapes[0], *shapes[1]), strict=True))
            if primitive.mask is not None:
                n_q, n_k = (size.pop(index) for index in primitive.pairs)
                size["pairs"] = int(kept(primitive.mask, n_q, n_k).sum())
            self.useful += 2 * math.prod(size.values())


def _of_a_pair(primitive: Primitive, d: int, e: int) -> int:
    """FLOPs of products: forward q k^T and p v; backward q k^T, g v^T, ds k, ds^T q and p^T g."""
    forward = isinstance(primitive, Attention | ChosenAttention | SortedAttention)
    return 2 * (d + e) if forward else 6 * d + 4 * e


class GradientSums(TorchDispatchMode):
    """Counts the additions by which autograd itself sums the gradients of what was used more than once."""

    def __init__(self, ops: Watched) -> None:
        super().__init__()
        self.ops = ops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.ops.applying and func.overloadpacket is _aten.add:
            self.ops.classes["elementwise"] += result.numel()
        return result


class Kept:
    """The memory that autograd keeps for the backward pass, each piece once."""

    def __init__(self) -> None:
        self.pieces: dict[int, int] = {}

    def note(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        self.pieces[storage._cdata] = storage.nbytes()
        return x

    def bytes(self, without: Sequence[Tensor] = ()) -> int:
        """Bytes, leaving out what these tensors (parameters) hold."""
        left_out = {x.untyped_storage()._cdata for x in without}
        return sum(size for place, size in self.pieces.items() if place not in left_out)


@contextmanager
def keeping() -> Iterator[Kept]:
    """Notes what autograd keeps of the operations inside.

    A piece of memory is known by the address of its storage object, which stays its own as long as it is kept; fake
    tensors have one too.
    """
    found = Kept()
    with torch.autograd.graph.saved_tensors_hooks(found.note, lambda x: x):
        yield found
